"""What a recovery trains in place of all weights: low-rank terms beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from compresskit.errors import InputError
from compresskit.ops.packed.modules import PackedLinear


class _Term(nn.Module):
    """Adds ``outward @ inward`` to a weight; where the weight is zero it stays zero.

    Args:
        weight: ``(out, …)``, floating point.
        rank: Of the term; at most that of the weight.
        order: Draws the start of ``inward``; ``outward`` starts at zero, so that nothing changes.
    """

    mask: Tensor | None

    def __init__(self, weight: Tensor, rank: int, order: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        start = torch.empty(rank, columns).uniform_(-1, 1, generator=order) / math.sqrt(columns)
        self.inward = nn.Parameter(start.to(weight.dtype))
        self.outward = nn.Parameter(weight.new_zeros(rows, rank))
        mask = weight.detach() != 0
        self.register_buffer("mask", None if bool(mask.all()) else mask)

    def forward(self, weight: Tensor) -> Tensor:
        term = (self.outward @ self.inward).reshape(weight.shape)
        return weight + (term if self.mask is None else term * self.mask)


@contextmanager
def low_rank_terms(module: nn.Module, rank: int, seed: int) -> Iterator[list[str]]:
    """Within it a module's only parameters that take gradients are low-rank terms, which are folded in at its end.

    "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), without scale and dropout, for Linear layers
    and convolutions; a convolution's weight is seen as ``(out, in · window)``. A weight that is shared is left alone.

    Args:
        module: Changed in place.
        rank: Of the terms, 1 or more.
        seed: Of their start.

    Yields:
        The layers that have a term.

    Raises:
        InputError: There is no such layer.
    """
    uses: dict[int, int] = {}
    for layer in module.modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd)) and uses.get(id(layer._parameters.get("weight"))) == 1
    }
    if not layers:
        raise InputError("no Linear and no convolution is there to put a low-rank term beside", "train all weights")
    order = torch.Generator().manual_seed(seed)
    with _frozen(module):
        for layer in layers.values():
            term = _Term(layer.get_parameter("weight"), rank, order)
            parametrize.register_parametrization(layer, "weight", term)
        try:
            yield list(layers)
        finally:
            for layer in layers.values():
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


@contextmanager
def trainable_repairs(module: nn.Module) -> Iterator[list[str]]:
    """Within it a module's only parameters that take gradients are the repairs of packed layers, as float32.

    Args:
        module: Changed in place; at the end the repairs are float16 again.

    Yields:
        The layers that have one.

    Raises:
        InputError: No layer has one.
    """
    layers = {n: m for n, m in module.named_modules() if isinstance(m, PackedLinear) and m.repair_in is not None}
    if not layers:
        raise InputError("there is no low-rank term to train: no Linear layer was quantized", "leave out `epochs`")
    parts = ("repair_in", "repair_out")
    with _frozen(module):
        for layer in layers.values():
            for part in parts:
                setattr(layer, part, nn.Parameter(layer.get_buffer(part).float()))
        try:
            yield list(layers)
        finally:
            for layer in layers.values():
                for part in parts:
                    trained = layer.get_parameter(part).detach().to(torch.float16)
                    delattr(layer, part)
                    layer.register_buffer(part, trained)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Parameters take no gradients for a while."""
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
