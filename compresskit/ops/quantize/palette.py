"""Palettes: the levels of a weight found by k-means, in one dimension, weighted by how much each column is fed.

Clustered weights are those of "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization
and Huffman Coding" (Han et al., 2016), with its linear start; weighting squared errors by the diagonal of the second
moments is that of "SqueezeLLM: Dense-and-Sparse Quantization" (Kim et al., 2023) with inputs in the place of gradients.
Each group keeps a scale, which takes turns with the levels. Left out: training of the levels, and sparse outliers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.packed.grid import Grid, Packed, fits_half, look_up, pack
from compresskit.ops.quantize.scales import as_stored

_TURNS = 6
_ROUNDS = 100
_STILL = 1e-5
"""Of a range of 1: levels that move by less have arrived."""
_MOST = 1 << 24
"""Weights that levels of a whole tensor are fitted to: of more, some that are evenly spread."""
_TINY = 1e-35


@dataclass
class Palette:
    """A weight while it is coded.

    Attributes:
        levels: float32 ``(rows or 1, groups or 1, codes)``, ascending.
        scales: float32 ``(rows, groups)``, holding values of ``dtype``.
        codes: uint8 ``(rows, groups, size)``.
        grid: Bits, group size, and what has levels of its own.
        dtype: What scales are stored as.
    """

    levels: Tensor
    scales: Tensor
    codes: Tensor
    grid: Grid
    dtype: torch.dtype

    def values(self) -> Tensor:
        """What codes stand for at scale 1: float32 ``(rows, groups, size)``."""
        return look_up(self.levels, self.codes)

    def nearest(self, values: Tensor, group: slice) -> Tensor:
        """Codes of the nearest levels: uint8, for values at scale 1 of some groups, ``(rows, groups of these, n)``."""
        bounds = (self.levels[..., 1:] + self.levels[..., :-1]) / 2
        if len(bounds) == bounds.shape[1] == 1:
            return torch.bucketize(values, bounds.reshape(-1), out_int32=True).to(torch.uint8)
        bounds = bounds[:, group] if bounds.shape[1] > 1 else bounds
        bounds = bounds.expand(*values.shape[:2], -1).contiguous()
        return torch.searchsorted(bounds, values.contiguous(), out_int32=True).to(torch.uint8)

    def keep_levels(self, levels: Tensor) -> None:
        """Take other levels, in order and as they are stored."""
        self.levels = levels.sort(-1).values.half().float()

    def packed(self, shape: tuple[int, ...]) -> Packed:
        """As stored."""
        codes, scales = pack(self.codes, self.grid.bits), self.scales.to(self.dtype)
        return Packed(codes, scales, None, shape, self.grid, self.levels.half())


def quantize_palette(weight: Tensor, grid: Grid, moments: Moments | None = None) -> Packed:
    """Quantize a weight to levels that are found for it.

    Args:
        weight: Floating point, first axis = outputs.
        grid: Of a format with stored levels.
        moments: Of the layer's inputs: errors count by how much their column is fed. None: all alike.

    Returns:
        The packed weight. Where many weights are exactly zero, one level is.

    Raises:
        InputError: The weight or the moments hold NaN or Inf.
    """
    columns = math.prod(weight.shape[1:])
    fed = None if moments is None else moments.gram.diagonal(dim1=1, dim2=2)
    return fit(weight.detach().reshape(-1, columns).float(), grid, fed).packed(tuple(weight.shape))


def fit(weight: Tensor, grid: Grid, fed: Tensor | None = None) -> Palette:
    """Levels, scales and codes of a weight.

    Args:
        weight: float32 ``(rows, columns)``.
        grid: Of a format with stored levels.
        fed: float32 ``(parts, columns)``: how much the squared error of each column counts, at least 0; ``rows`` are
            those of the parts one after the other.

    Raises:
        InputError: The weight, or what is fed, holds NaN or Inf.
    """
    rows, columns = weight.shape
    groups, size, _ = grid.layout(columns)
    tables = grid.format.stored_levels(rows, groups, grid.bits)
    if tables is None:
        raise ValueError(f"{grid.format.name} stores no levels")
    if not weight.isfinite().all() or not (fed is None or fed.isfinite().all()):
        raise InputError("the weight or its inputs hold NaN or Inf", "leave its layer out with `exclude`")
    short = groups * size - columns
    blocks = F.pad(weight, (0, short)).reshape(rows, groups, size)
    matters = F.pad(_importance(fed, rows, columns), (0, short)).reshape(rows, groups, size)
    largest = blocks.abs().amax(-1)
    dtype = torch.float16 if fits_half(largest) else torch.float32
    scales = as_stored(torch.where(largest < _TINY, 1.0, largest), dtype)
    found = Palette(torch.zeros(tables), scales, torch.zeros(rows, groups, size, dtype=torch.uint8), grid, dtype)
    sparse = int((weight == 0).sum()) << grid.bits >= weight.numel()
    for turn in range(_TURNS):
        if turn:
            found.scales = _rescaled(found, blocks, matters)
        values, weights = blocks / found.scales.unsqueeze(-1), matters * found.scales.square().unsqueeze(-1)
        start = found.levels if turn else None
        levels = cluster(values.reshape(*_each(tables)), weights.reshape(*_each(tables)), tables[-1], start)
        found.keep_levels(with_zero(levels.reshape(tables), sparse))
        found.codes = found.nearest(values, slice(None))
    return found


def with_zero(levels: Tensor, wanted: bool) -> Tensor:
    """The level of each table that is nearest to 0 moved there, where that is wanted."""
    if not wanted:
        return levels
    return levels.scatter(-1, levels.abs().argmin(-1, keepdim=True), 0.0)


def cluster(values: Tensor, weights: Tensor, count: int, start: Tensor | None = None) -> Tensor:
    """Weighted k-means in one dimension, in each row.

    Args:
        values: float32 ``(tables, n)``.
        weights: float32, same shape, at least 0.
        count: Of levels.
        start: float32, of ``tables · count`` levels in order; None: evenly spread over each row's range.

    Returns:
        float32 ``(tables, count)``, ascending. A level that no value is near stays where it began.
    """
    if len(values) == 1 and values.shape[1] > _MOST:
        step = -(-values.shape[1] // _MOST)
        values, weights = values[:, ::step], weights[:, ::step]
    ordered, order = values.sort(-1)
    mass = weights.gather(-1, order).double()
    sums = [F.pad(part.cumsum(-1), (1, 0)) for part in (mass, mass * ordered)]
    if start is None:
        place = torch.linspace(0, 1, count)
        levels = ordered[:, :1] + place * (ordered[:, -1:] - ordered[:, :1])
    else:
        levels = start.reshape(len(values), count)
    for _ in range(_ROUNDS):
        cuts = torch.searchsorted(ordered, ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous())
        cuts = F.pad(F.pad(cuts, (1, 0)), (0, 1), value=values.shape[1])
        total, first = (part.gather(-1, cuts).diff() for part in sums)
        moved = torch.where(total > 0, first / total.clamp_min(1e-300), levels.double()).float()
        still = bool((moved - levels).abs().amax() < _STILL)
        levels = moved
        if still:
            break
    return levels


def _importance(fed: Tensor | None, rows: int, columns: int) -> Tensor:
    """How much each weight's error counts, float32 ``(rows, columns)``; never nothing."""
    if fed is None:
        return torch.ones(1, 1).expand(rows, columns)
    level = fed.mean(1, keepdim=True)
    least = torch.where(level > 0, 1e-4 * level, 1.0)
    return torch.maximum(fed, least).repeat_interleave(rows // len(fed), 0)


def _each(tables: tuple[int, int, int]) -> tuple[int, int]:
    """The shape that puts the weights of each table into a row."""
    return tables[0] * tables[1], -1


def _rescaled(found: Palette, blocks: Tensor, matters: Tensor) -> Tensor:
    """The scales of least error for the codes; old ones where they would not be positive."""
    values = found.values()
    counted = matters * values
    with_weight, with_itself = (counted * blocks).sum(-1), (counted * values).sum(-1)
    new = torch.where(with_itself > 0, with_weight / with_itself.clamp_min(1e-30), found.scales)
    return as_stored(torch.where(new > 0.25 * found.scales, new, found.scales), found.dtype)
