"""Second moments of what a layer takes in: all that most calibrated algorithms need of the data.

For an error ``D`` of a weight, the mean squared error of the layer's output is ``trace(D · gram · Dᵀ)``: no sample has
to be kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 1 << 16
"""Positions worked on at once."""

_UNFOLDED = 1 << 26
"""Bytes of a convolution's input that are unfolded at once, about; one sample may take more."""


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's inputs, over all positions (tokens, or places that a convolution's window takes).

    Attributes:
        gram: Mean of ``x xᵀ``: float32 ``(groups, columns, columns)``; ``groups`` is a convolution's, else 1.
        mean: Mean of ``x``: float32 ``(groups, columns)``.
        count: Positions seen.
        cross: Mean of ``(x₀ − x) xᵀ`` where ``x₀`` is the input in the original model; None when it wasn't collected.
        drift: Mean of ``x₀ − x``, like ``mean``; None with ``cross``.
    """

    gram: Tensor
    mean: Tensor
    count: int
    cross: Tensor | None = None
    drift: Tensor | None = None

    def centred(self) -> Moments:
        """The moments of ``x − mean``: all that matters where a bias makes up for the mean error."""

        def product(of: Tensor) -> Tensor:
            return of.unsqueeze(2) * self.mean.unsqueeze(1)

        cross = None if self.cross is None or self.drift is None else self.cross - product(self.drift)
        return replace(self, gram=self.gram - product(self.mean), cross=cross)


class Collector:
    """Sums up the moments of one layer, batch by batch."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None
        self._sum: Tensor | None = None
        self._drift: Tensor | None = None
        self._paired = True
        self._count = 0

    def add(self, x: Tensor, keep: Tensor | None = None, original: Tensor | None = None) -> None:
        """Take in one batch.

        Args:
            x: The layer's input.
            keep: bool ``(batch, tokens)``: False for padding, which isn't counted; ignored where it doesn't fit.
            original: The same input in the original model. If it is missing once, or of another shape (routing that
                depends on the data), the result has no ``cross``.
        """
        if original is None or original.shape != x.shape:
            self._paired, self._cross, self._drift = False, None, None
        original = original if self._paired else None
        samples = _at_once(self._layer, x)
        for start in range(0, len(x), samples):
            part = slice(start, start + samples)
            self._add(x[part], keep, None if original is None else original[part])

    def _add(self, x: Tensor, keep: Tensor | None, original: Tensor | None) -> None:
        rows = columns_of(self._layer, x, keep)
        others = None if original is None else columns_of(self._layer, original, keep)
        for start in range(0, rows.shape[1], _ROWS):
            part = rows[:, start : start + _ROWS].float()
            gram, total = part.mT @ part, part.sum(1)
            self._gram = gram if self._gram is None else self._gram.add_(gram)
            self._sum = total if self._sum is None else self._sum.add_(total)
            if others is not None:
                away = others[:, start : start + _ROWS].float() - part
                cross, drift = away.mT @ part, away.sum(1)
                self._cross = cross if self._cross is None else self._cross.add_(cross)
                self._drift = drift if self._drift is None else self._drift.add_(drift)
        self._count += rows.shape[1]

    def moments(self) -> Moments | None:
        """The result; None when the layer was never called."""
        if self._gram is None or self._sum is None or not self._count:
            return None
        cross = None if self._cross is None else self._cross / self._count
        drift = None if self._drift is None else self._drift / self._count
        return Moments(self._gram / self._count, self._sum / self._count, self._count, cross, drift)


def _at_once(layer: nn.Module, x: Tensor) -> int:
    """How many samples are written as rows at once: a convolution's window copies each value many times."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)) or x.dim() != len(layer.kernel_size) + 2:
        return max(1, len(x))
    copies = math.prod(layer.kernel_size) / math.prod(layer.stride)
    return max(1, int(_UNFOLDED / max(1.0, x[:1].numel() * copies * x.element_size())))


def collectable(layer: nn.Module) -> bool:
    """True for the layers whose inputs can be written as rows: Linear, and convolutions of one or two axes."""
    return isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))


def columns_of(layer: nn.Module, x: Tensor, keep: Tensor | None = None) -> Tensor:
    """A layer's input as the rows that its flattened weight multiplies: ``(groups, positions, columns)``.

    Args:
        layer: Linear, Conv1d or Conv2d; its weight is ``(outputs, columns)`` when flattened.
        x: ``(…, in)``, or ``(batch, channels, …)`` for a convolution.
        keep: See :meth:`Collector.add`.
    """
    if isinstance(layer, nn.Linear):
        if keep is not None and x.dim() >= 3 and x.shape[:2] == keep.shape:
            x = x[keep]
        return x.reshape(1, -1, x.shape[-1])
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        raise TypeError(f"{type(layer).__name__} has no rows")
    flat = isinstance(layer, nn.Conv1d)
    if x.dim() == (2 if flat else 3):
        x = x.unsqueeze(0)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=_mode(layer))
        padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    else:
        padding = layer.padding
    if flat:
        x = x.unsqueeze(2)
    lead = (1,) if flat else ()
    patches = F.unfold(
        x, (*lead, *layer.kernel_size), (*lead, *layer.dilation), (0,) * len(lead) + padding, (*lead, *layer.stride)
    )
    batch, _, positions = patches.shape
    grouped = patches.reshape(batch, layer.groups, -1, positions)
    return grouped.permute(1, 0, 3, 2).reshape(layer.groups, batch * positions, -1)


def _mode(layer: nn.Conv1d | nn.Conv2d) -> str:
    return "constant" if layer.padding_mode == "zeros" else layer.padding_mode


def output_error(weight: Tensor, found: Tensor, moments: Moments) -> Tensor:
    """Mean squared error of each output that a changed weight makes.

    Args:
        weight: The original ``(outputs, …)``.
        found: The changed one, same shape.
        moments: Of the layer's inputs.

    Returns:
        float32 ``(outputs,)``.
    """
    groups, columns, _ = moments.gram.shape
    error = (found.detach().float() - weight.detach().float()).reshape(groups, -1, columns)
    return torch.einsum("gok,gkl,gol->go", error, moments.gram, error).reshape(-1)
