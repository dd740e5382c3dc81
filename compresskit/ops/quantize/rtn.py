"""Rounding to nearest, with each group's range clipped where that lowers the squared error.

The range search is the one of "A White Paper on Neural Network Quantization" (Nagel et al., 2021, section 3.1:
MSE range setting), followed by a least-squares refit of the scale to the codes, as in "Optimal Clipping and
Magnitude-aware Differentiation" (Sakr et al., 2022) in spirit: rounding and scale take turns. No data is used.
What it leaves out: correlations between weights and inputs (GPTQ, AWQ).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from compresskit.errors import InputError
from compresskit.ops.quantize.grid import Grid, Packed, pack

_REFITS = 3
_HALF_MIN, _HALF_MAX = 2.0**-18, 65504.0
"""Scales that float16 holds to 1 % or better; codes are chosen for the rounded scale, so that is close enough."""
_TINY = 1e-35
_BLOCK = 1 << 18
"""Weights worked on at once: the block and its scratch buffers stay in the caches."""


def clip_ratios(grid: Grid, size: int) -> tuple[float, ...]:
    """Fractions of the full range to try: the longer a group and the fewer the bits, the more clipping can pay."""
    if grid.bits >= 8:
        return (1.0,)
    if size <= 64:
        return (1.0, 0.92, 0.84)
    return tuple(1.0 - 0.05 * i for i in range(13))


def quantize_rtn(weight: Tensor, grid: Grid, *, clip: bool = True) -> Packed:
    """Quantize a weight without calibration.

    Args:
        weight: Floating point, first axis = outputs. Read in blocks; never copied whole.
        grid: Bits, group size and symmetry.
        clip: Search the range of least squared error for each group; False takes the full range.

    Returns:
        The packed weight; scales are already rounded to the dtype they are stored in, and codes fit those scales.

    Raises:
        InputError: The weight holds NaN or Inf.
    """
    dtype = stored_dtype(weight, grid)
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    groups, size, nbytes = grid.layout(columns)
    codes = torch.empty(rows, groups, nbytes, dtype=torch.uint8)
    scales = torch.empty(rows, groups, dtype=dtype)
    zeros = torch.empty(rows, groups, dtype=torch.uint8)
    for part, block in _blocks(weight, grid):
        scale, zero = _full_range(block, grid, dtype)
        if clip:
            scale, zero = _search(block, grid, dtype, scale, zero)
        values = _round(block, scale, zero, grid, torch.empty_like(block)).to(torch.uint8)
        codes[part] = pack(values.t().reshape(-1, groups, size), grid.bits)
        scales[part] = scale.reshape(-1, groups)
        zeros[part] = zero.reshape(-1, groups)
    if not scales.isfinite().all():
        raise InputError("the weight holds NaN or Inf", "leave its layer out with --exclude")
    stored = None if grid.symmetric else pack(zeros, grid.bits)
    return Packed(codes, scales, stored, tuple(weight.shape), grid)


def stored_dtype(weight: Tensor, grid: Grid) -> torch.dtype:
    """float16 where it holds every scale of the weight, else float32. Reads the weight once, in blocks."""
    for _, block in _blocks(weight, grid):
        scale, _ = _full_range(block, grid, torch.float32)
        low, high = (float(v) for v in scale.aminmax())
        if low < _HALF_MIN or high > _HALF_MAX:
            return torch.float32
    return torch.float16


def _blocks(weight: Tensor, grid: Grid) -> Iterator[tuple[slice, Tensor]]:
    """Row by row blocks as float32 ``(size, rows · groups)``: reductions over a group run along whole vectors."""
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    matrix = weight.detach().reshape(rows, columns)
    groups, size, _ = grid.layout(columns)
    step = max(1, _BLOCK // (groups * size))
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        block = matrix[part]
        if short := groups * size - columns:
            block = torch.nn.functional.pad(block, (0, short))
        yield part, block.reshape(-1, size).t().float().contiguous()


def _full_range(block: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover each group's range, as float32 ``(groups,)``."""
    if grid.symmetric:
        # The negative side has one level more: it covers the larger end when that end is negative.
        reach = torch.maximum(block.amax(0) / (grid.middle - 1), -block.amin(0) / grid.middle)
        zero = torch.full_like(reach, grid.middle)
        return _stored(reach, dtype), zero
    low, high = block.amin(0).clamp_max_(0), block.amax(0).clamp_min_(0)
    scale = _stored((high - low) / grid.levels, dtype)
    return scale, (-low / scale).round_().clamp_(0, grid.levels)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale as it will be read back; 1 for an all-zero group; NaN and Inf stay."""
    return torch.where(scale < _TINY, 1.0, scale).to(dtype).float()


def _round(block: Tensor, scale: Tensor, zero: Tensor, grid: Grid, out: Tensor) -> Tensor:
    """Codes as float32, written into ``out``."""
    return torch.mul(block, 1.0 / scale, out=out).add_(zero).round_().clamp_(0, grid.levels)


def _search(block: Tensor, grid: Grid, dtype: torch.dtype, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the clipped ranges, its scale then refitted to its codes.

    With q the centred codes, |w − s·q|² = |w|² − 2s⟨q,w⟩ + s²⟨q,q⟩: two inner products give the error of a scale and
    the best scale for the same codes.
    """
    scratch, other = torch.empty_like(block), torch.empty_like(block)
    below, above = -zero, grid.levels - zero

    def fit(scale: Tensor) -> tuple[Tensor, Tensor]:
        torch.mul(block, 1.0 / scale, out=scratch).round_().clamp_(below, above)
        with_w = torch.mul(scratch, block, out=other).sum(0)
        with_q = torch.mul(scratch, scratch, out=other).sum(0)
        refit = torch.where(with_w > 0, with_w / with_q, scale).to(dtype).float()
        return scale * (scale * with_q - 2 * with_w), refit

    full = scale
    best, refit = fit(scale)

    def keep(candidate: Tensor) -> None:
        nonlocal best, scale, refit
        error, next_fit = fit(candidate)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, candidate, scale)
        refit = torch.where(better, next_fit, refit)

    for ratio in clip_ratios(grid, block.shape[0])[1:]:
        keep(_stored(full * ratio, dtype))
    for _ in range(_REFITS):
        keep(refit)
    return scale, zero
