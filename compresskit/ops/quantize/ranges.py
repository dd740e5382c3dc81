"""Scales and zero points of groups where some columns matter more than others, and codes as they come up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskit.ops.packed.grid import Grid, Packed, pack, unpack
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.scales import as_stored, least_squares_scales

_REFITS = 3
_HALF_MIN, _HALF_MAX = 2.0**-16, 65504.0 / 4
_TINY = 1e-35


@dataclass
class Codes:
    """A weight while an algorithm rounds it column by column.

    Attributes:
        codes: float32 ``(parts, rows, groups · size)``; parts are a convolution's groups.
        scales: float32 ``(parts, rows, groups)``, holding values of ``dtype``.
        zeros: float32, same shape.
        grid: Bits, group size and symmetry.
        dtype: What scales are stored as.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    grid: Grid
    dtype: torch.dtype

    @classmethod
    def empty(cls, weight: Tensor, grid: Grid, dtype: torch.dtype) -> Codes:
        """For a weight ``(parts, rows, columns)``."""
        grid.check_steps()
        parts, rows, columns = weight.shape
        groups, size, _ = grid.layout(columns)
        zeros = torch.full((parts, rows, groups), float(grid.middle))
        return cls(torch.zeros(parts, rows, groups * size), torch.ones_like(zeros), zeros, grid, dtype)

    @classmethod
    def of(cls, packed: Packed, parts: int) -> Codes:
        """Of a finished weight."""
        grid, (rows, groups) = packed.grid, packed.scales.shape
        grid.check_steps()
        _, size, _ = grid.layout(math.prod(packed.shape[1:]))
        zeros = torch.full((rows, groups), float(grid.middle))
        if packed.zeros is not None:
            zeros = unpack(packed.zeros, grid.bits, groups).float()
        codes = unpack(packed.codes, grid.bits, size).float().reshape(parts, rows // parts, groups * size)
        shape = parts, rows // parts, groups
        return cls(codes, packed.scales.float().reshape(shape), zeros.reshape(shape), grid, packed.scales.dtype)

    def fit(self, weight: Tensor, start: int, importance: Tensor) -> None:
        """Search the range of the group that begins at column ``start``, for ``weight`` as it is now.

        ``importance`` is ``(parts, columns)``: the weight of each column's squared error.
        """
        parts, rows, columns = weight.shape
        _, size, _ = self.grid.layout(columns)
        short = max(0, start + size - columns)
        block = F.pad(weight[..., start : start + size], (0, short))
        matters = F.pad(importance[:, None, start : start + size], (0, short), value=float(importance.mean()))
        matters = matters.expand(-1, rows, -1).reshape(parts * rows, -1)
        scale, zero = fit_ranges(block.reshape(parts * rows, -1), self.grid, matters, self.dtype)
        self.scales[..., start // size] = scale.reshape(parts, rows)
        self.zeros[..., start // size] = zero.reshape(parts, rows)

    def rounded(self, value: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of one column of each part, and what they stand for; neither is kept.

        Args:
            value: float32 ``(parts, rows)``.
            column: int64 ``(parts,)``: which column it is.
        """
        part = torch.arange(len(value))
        size = self.codes.shape[2] // self.scales.shape[2]
        scale, zero = self.scales[part, :, column // size], self.zeros[part, :, column // size]
        code = (value * (1.0 / scale)).add_(zero).round_().clamp_(0, self.grid.largest)
        return code, (code - zero) * scale

    def round_all(self, weight: Tensor) -> None:
        """Round a whole weight ``(parts, rows, columns)`` to the ranges there are."""
        columns = weight.shape[2]
        size = self.codes.shape[2] // self.scales.shape[2]
        zeros = self.zeros.repeat_interleave(size, 2)[..., :columns]
        codes = (weight * (1.0 / self.spread(columns))).add_(zeros).round_().clamp_(0, self.grid.largest)
        self.codes[..., :columns] = codes

    def refit(self, target: Tensor, gram: Tensor) -> None:
        """Take the scales of least output error for the codes there are; zero points stay.

        Args:
            target: What the weight stands for, float32 ``(parts, rows, columns)``.
            gram: float32 ``(parts, columns, columns)``.
        """
        values, size = self.centred(target.shape[2]), self.codes.shape[2] // self.scales.shape[2]
        self.scales = least_squares_scales(values, self.scales, target, gram, self.dtype, size=size)

    def centred(self, columns: int) -> Tensor:
        """Codes less their zero points, ``(parts, rows, columns)``."""
        size = self.codes.shape[2] // self.scales.shape[2]
        return (self.codes - self.zeros.repeat_interleave(size, 2))[..., :columns]

    def spread(self, columns: int) -> Tensor:
        """The scale of each column, ``(parts, rows, columns)``."""
        size = self.codes.shape[2] // self.scales.shape[2]
        return self.scales.repeat_interleave(size, 2)[..., :columns]

    def packed(self, weight: Tensor) -> Packed:
        """As stored, in the shape of the original weight."""
        rows, groups = weight.shape[0], self.scales.shape[2]
        grid, columns = self.grid, math.prod(weight.shape[1:])
        if short := self.codes.shape[2] - columns:
            self.codes[..., columns:] = self.zeros[..., -1:].expand(*self.zeros.shape[:2], short)  # padding is 0
        codes = self.codes.to(torch.uint8).reshape(rows, groups, -1)
        zeros = self.zeros.to(torch.uint8).reshape(rows, groups)
        stored = None if grid.symmetric else pack(zeros, grid.bits)
        scales = self.scales.reshape(rows, groups).to(self.dtype)
        return Packed(pack(codes, grid.bits), scales, stored, tuple(weight.shape), grid)


def fit_ranges(block: Tensor, grid: Grid, importance: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The scale and the zero point of least weighted squared rounding error, for one group of columns.

    Where all columns matter alike, they are those of :func:`~compresskit.ops.quantize.rtn.quantize_rtn`.

    Args:
        block: float32 ``(rows, columns)``: what the group's weights are now.
        grid: Bits and symmetry.
        importance: float32 ``(rows, columns)``, not negative: the weight of each column's squared error.
        dtype: What scales are stored as.

    Returns:
        float32 ``(rows, 1)`` each; scales hold values of ``dtype``.
    """
    if importance is None or _even(importance):
        packed = quantize_rtn(block, Grid(grid.bits, 0, grid.symmetric))
        zero = torch.full((len(block), 1), float(grid.middle))
        if packed.zeros is not None:
            zero = unpack(packed.zeros, grid.bits, 1).float()
        return as_stored(packed.scales.float(), dtype), zero
    return _search(block, grid, importance, dtype)


def scale_dtype(weight: Tensor, grid: Grid) -> torch.dtype:
    """float16 where it can hold the scales of this weight ``(parts, rows, columns)``, else float32."""
    _, size, _ = grid.layout(weight.shape[2])
    padded = F.pad(weight, (0, -weight.shape[2] % size)).reshape(*weight.shape[:2], -1, size)
    scale = (padded.amax(-1).clamp_min(0) - padded.amin(-1).clamp_max(0)) / grid.largest
    low, high = (float(v) for v in torch.where(scale < _TINY, 1.0, scale).aminmax())
    return torch.float32 if low < _HALF_MIN or high > _HALF_MAX else torch.float16


def _even(importance: Tensor) -> bool:
    low, high = importance.aminmax()
    return bool(high - low <= 1e-6 * high)


def _search(block: Tensor, grid: Grid, importance: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    low, high = block.amin(1, keepdim=True).clamp_max(0), block.amax(1, keepdim=True).clamp_min(0)
    best = torch.full_like(low, torch.inf)
    scale, zero = torch.ones_like(low), torch.full_like(low, float(grid.middle))

    def consider(tried: Tensor, at: Tensor) -> Tensor:
        """Keep what is better; gives the scale that suits these codes best."""
        nonlocal best, scale, zero
        centred = (block * (1.0 / tried)).add_(at).round_().clamp_(0, grid.largest).sub_(at)
        matters = centred * importance
        with_w, with_q = (matters * block).sum(1, keepdim=True), (matters * centred).sum(1, keepdim=True)
        error = tried * (tried * with_q - 2 * with_w)
        better = error < best
        best, scale, zero = (torch.where(better, new, old) for new, old in ((error, best), (tried, scale), (at, zero)))
        return torch.where((with_w > 0) & (with_q > 0), with_w / with_q, tried)

    for ratio in (1 - 0.05 * i for i in range({2: 14, 3: 12, 4: 8}.get(grid.bits, 2))):
        if grid.symmetric:
            reach = torch.maximum(high / (grid.middle - 1), -low / grid.middle)
            consider(as_stored(reach * ratio, dtype), torch.full_like(reach, float(grid.middle)))
            continue
        tried = as_stored((high - low) / grid.largest * ratio, dtype)
        cut = (1 - ratio) * (high - low)
        for share in (0.0, 0.5, 1.0):  # of the cut taken off the low end
            consider(tried, (-(low + share * cut) / tried).round_().clamp_(0, grid.largest))
    for _ in range(_REFITS):
        consider(as_stored(consider(scale, zero), dtype), zero)
    return scale, zero
