"""Which weights stay: any given share of them, or N in each group of M along a layer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pattern:
    """How many weights become zero, and where.

    Attributes:
        sparsity: Share of zeros, 0 to below 1; without ``of`` they may lie anywhere.
        kept: Weights that stay in each group of ``of``.
        of: Size of the groups, which lie along a layer's inputs as sparse tensor cores want it; 0 is no groups.
    """

    sparsity: float
    kept: int = 0
    of: int = 0

    @classmethod
    def grouped(cls, kept: int, of: int) -> Pattern:
        """``kept`` weights in each group of ``of``: 2:4 is ``grouped(2, 4)``."""
        return cls(1 - kept / of, kept, of)

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}" if self.of else f"{100 * self.sparsity:g} %"

    def misfit(self, weight: Tensor) -> str | None:
        """Why a weight ``(outputs, inputs, …)`` can't have this pattern; None when it can."""
        if self.of and weight.shape[1] % self.of:
            return f"its {weight.shape[1]} inputs don't fill groups of {self.of}"
        return None


def kept(scores: Tensor, pattern: Pattern, *, by_row: bool = False) -> Tensor:
    """The weights with the highest scores.

    Args:
        scores: ``(outputs, inputs, …)``; of equal ones the later stay.
        pattern: Which share; groups are taken along the second axis.
        by_row: Without groups: every output loses the same number of weights, rather than all outputs together.

    Returns:
        bool, True for what stays; same shape. Exactly ``round(sparsity · n)`` of the ``n`` scores are False.
    """
    if pattern.of:
        rows = scores.movedim(1, -1)
        groups = rows.reshape(-1, pattern.of)
        return lowest(groups, pattern.of - pattern.kept).logical_not().reshape(rows.shape).movedim(-1, 1)
    rows = scores.reshape(scores.shape[0] if by_row else 1, -1)
    return lowest(rows, round(pattern.sparsity * rows.shape[1])).logical_not().reshape(scores.shape)


def lowest(rows: Tensor, count: int) -> Tensor:
    """True for the ``count`` lowest values of each row of a matrix; of equal ones the first."""
    order = rows.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True)


def oriented(layer: nn.Module) -> Tensor:
    """A view of a layer's weight as ``(outputs, inputs, …)``; writing into it changes the layer."""
    weight = layer.get_parameter("weight").data
    turned = type(layer).__name__ == "Conv1D" or isinstance(layer, nn.modules.conv._ConvTransposeNd)
    return weight.transpose(0, 1) if turned else weight


def keep_zeros(layers: Mapping[str, nn.Module]) -> Callable[[], None]:
    """A function that zeroes again what is zero now in the layers' weights: to be called after a training step."""
    masks = [(layer.get_parameter("weight"), layer.get_parameter("weight").detach() != 0) for layer in layers.values()]

    def again() -> None:
        with torch.no_grad():
            for weight, mask in masks:
                weight.mul_(mask.to(weight.device))

    return again


def zeros(layers: Iterable[nn.Module]) -> int:
    """How many weights of some layers are exactly zero."""
    return sum(int((layer.get_parameter("weight") == 0).sum()) for layer in layers)
