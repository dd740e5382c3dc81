"""Fake quantization: weights that are rounded in the forward pass and learnt as if they weren't.

"Learned Step Size Quantization" (Esser et al., 2020): rounding passes gradients straight through, and the scale of
each group is learnt with the weights. Zero points stay as they were found. What training sees is what is stored: the
scale goes through its stored dtype too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from compresskit.ops.packed.grid import Packed, pack, unpack

_LEAST_SCALE = 1 / 16
"""How small a scale may become, as a fraction of what it was."""


def straight(rounded: Tensor, x: Tensor) -> Tensor:
    """``rounded`` with the gradient of ``x``."""
    return x + (rounded - x).detach()


class FakeWeight(nn.Module):
    """What a weight's codes would stand for: a parametrization of a layer's ``weight``.

    Args:
        start: A quantized form of the weight: its scales are where learning starts, its zero points stay.

    Attributes:
        scale: float32 ``(rows · groups,)``, learnt; of one axis, as what takes no weight decay.
    """

    zero: Tensor
    least: Tensor

    def __init__(self, start: Packed) -> None:
        super().__init__()
        grid, (rows, groups) = start.grid, start.scales.shape
        grid.check_steps()
        zero = torch.full((rows, groups), float(grid.middle))
        if start.zeros is not None:
            zero = unpack(start.zeros, grid.bits, groups).float()
        self.grid, self.shape, self.dtype = grid, start.shape, start.scales.dtype
        self._stored_zeros = start.zeros
        scale = start.scales.float().unsqueeze(-1)
        self.register_buffer("zero", zero.unsqueeze(-1))
        self.register_buffer("least", scale * _LEAST_SCALE)
        self.scale = nn.Parameter(scale.flatten().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as its codes give it, in its own shape and dtype."""
        scale = self._scale()
        return self._flat((self.codes(weight) - self.zero) * scale).to(weight.dtype)

    def codes(self, weight: Tensor) -> Tensor:
        """float32 ``(rows, groups, size)``: whole numbers, with the gradient of what was rounded."""
        place = self.place(weight)
        return straight(place.round(), place).clamp(0, self.grid.largest)

    def place(self, weight: Tensor) -> Tensor:
        """Where the weight stands on the grid, before rounding."""
        count = weight[0].numel() * len(weight)
        scale = self._scale()
        # The gradient that all weights of a group send to its scale is balanced against that of a single weight.
        shrink = math.sqrt(scale.numel() / (count * self.grid.largest))
        scale = straight(scale, scale * shrink)
        return self.grouped(weight) / scale + self.zero

    def grouped(self, weight: Tensor) -> Tensor:
        """float32 ``(rows, groups, size)``, the last group filled up with zeros."""
        groups, size, _ = self.grid.layout(math.prod(self.shape[1:]))
        flat = weight.float().reshape(self.shape[0], -1)
        return F.pad(flat, (0, groups * size - flat.shape[1])).reshape(self.shape[0], groups, size)

    @torch.no_grad()
    def packed(self, weight: Tensor) -> Packed:
        """The codes and scales that the forward pass uses, as they are stored."""
        codes = pack(self.codes(weight).to(torch.uint8), self.grid.bits)
        return Packed(codes, self._scale().squeeze(-1).to(self.dtype), self._stored_zeros, self.shape, self.grid)

    def _flat(self, values: Tensor) -> Tensor:
        return values.flatten(1)[:, : math.prod(self.shape[1:])].reshape(self.shape)

    def _scale(self) -> Tensor:
        scale = torch.maximum(self.scale.reshape(self.least.shape), self.least)
        return straight(scale.to(self.dtype).float(), scale)


@contextmanager
def faked(layers: Mapping[str, nn.Module], fakes: Mapping[str, FakeWeight]) -> Iterator[None]:
    """Layers whose ``weight`` is what a fake makes of it; they are as before afterwards.

    A layer that has two names takes the fake of the first.
    """
    done: list[nn.Module] = []
    try:
        for name, fake in fakes.items():
            if any(layers[name] is layer for layer in done):
                continue
            parametrize.register_parametrization(layers[name], "weight", fake, unsafe=True)
            done.append(layers[name])
        yield
    finally:
        for layer in done:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def latent(layer: nn.Module) -> nn.Parameter:
    """The weight under the fake."""
    found = layer.parametrizations["weight"].original if parametrize.is_parametrized(layer) else layer.weight  # type: ignore[index,union-attr]
    if not isinstance(found, nn.Parameter):
        raise TypeError("the layer's weight is no parameter")
    return found
