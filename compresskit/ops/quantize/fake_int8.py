"""Fake quantization of weights and activations to 8 bits, as static int8 files compute.

"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (Jacob et al., 2018).
A weight's scale follows from its largest value at every step, one for each output channel: folding a normalization
into the weight later scales whole channels, so it leaves the codes as they were trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresskit.ops.quantize.fake import straight

_SETTLE = 100
"""Steps after which an activation's range stays."""
_MOVE = 0.1
_INPUT = "compresskit_input"


class Int8Weight(nn.Module):
    """A weight on a symmetric grid of 8 bits for each output channel: a parametrization.

    Args:
        levels: The largest code: 127, or 63 for weights of 7 bits.
    """

    def __init__(self, levels: int = 127) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as its codes give it."""
        rows = weight.detach().abs().flatten(1).amax(1)
        scale = (rows / self.levels).clamp_min(1e-12).reshape(-1, *[1] * (weight.dim() - 1))
        return straight((weight / scale).round() * scale, weight)


class Int8Input(nn.Module):
    """An activation on a grid of 256 levels that holds zero; its range follows the data until it settles."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as its codes give it; what lies outside the range takes no gradient."""
        if self.training and self.seen < _SETTLE:
            self._watch(x.detach())
        scale = ((self.high - self.low) / 255).clamp_min(1e-12)
        zero = (-self.low / scale).round()
        place = x / scale + zero
        return ((straight(place.round(), place)).clamp(0, 255) - zero) * scale

    def _watch(self, x: Tensor) -> None:
        low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
        if self.seen:
            low, high = torch.lerp(self.low, low, _MOVE), torch.lerp(self.high, high, _MOVE)
        self.low.copy_(low)
        self.high.copy_(high)
        self.seen.add_(1)


@contextmanager
def int8(layers: Iterable[nn.Module], levels: int = 127) -> Iterator[None]:
    """Layers that work on 8 bits for a while; afterwards their weights are what their codes give."""
    with ExitStack() as stack:
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", Int8Weight(levels), unsafe=True)
            stack.callback(parametrize.remove_parametrizations, layer, "weight", leave_parametrized=True)
            fake = Int8Input()
            # A submodule for the while: its range is part of the layer's state, for who keeps or averages that.
            layer.add_module(_INPUT, fake)
            stack.callback(layer.__delattr__, _INPUT)
            stack.callback(layer.register_forward_pre_hook(partial(_through, fake)).remove)
        yield


def _through(fake: Int8Input, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (fake(args[0]), *args[1:]) if args and args[0].is_floating_point() else args
