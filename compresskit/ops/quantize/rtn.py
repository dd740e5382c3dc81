"""Rounding to nearest, with each group's range clipped where that lowers the squared error.

The range search is the one of "A White Paper on Neural Network Quantization" (Nagel et al., 2021, section 3.1:
MSE range setting), followed by a least-squares refit of the scale to the codes, as in "Optimal Clipping and
Magnitude-aware Differentiation" (Sakr et al., 2022) in spirit: rounding and scale take turns. No data is used.
What it leaves out: correlations between weights and inputs (GPTQ, AWQ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from compresskit.errors import InputError
from compresskit.ops.packed.grid import Grid, Packed, fits_half, pack
from compresskit.ops.quantize.table import quantize_table
from compresskit.ops.quantize.two_level import fit_scales, round_codes, to_stored, two_level_of

_REFITS = 2
_TINY = 1e-35
_BLOCK = 1 << 18
"""Weights worked on at once: the block and its scratch buffers stay in the caches."""


class _PastHalf(Exception):
    """A scale that float16 can't hold."""


def clip_ratios(grid: Grid, size: int) -> tuple[float, ...]:
    """Fractions of the full range to try: the longer a group and the fewer the bits, the more clipping can pay."""
    if grid.bits >= 8:
        return (1.0,)
    if grid.bits == 4 and size <= 64:
        return (1.0, 0.92, 0.84)
    return tuple(1.0 - 0.05 * i for i in range(13))


def quantize_rtn(weight: Tensor, grid: Grid, *, clip: bool = True) -> Packed:
    """Quantize a weight without calibration. The result doesn't depend on the number of threads.

    Args:
        weight: Floating point, first axis = outputs. Read in blocks; never copied whole.
        grid: Of any format; ranges are searched where its steps are equal.
        clip: Search the range of least squared error for each group; False takes the full range.

    Returns:
        The packed weight; scales are already rounded to the dtype they are stored in, and codes fit those scales.

    Raises:
        InputError: The weight holds NaN or Inf.
    """
    if grid.two_level is not None:
        return _two_level(weight, grid, clip)
    if not grid.format.equal_steps:
        return quantize_table(weight, grid)
    try:
        return _quantize(weight, grid, clip, torch.float16)
    except _PastHalf:
        return _quantize(weight, grid, clip, torch.float32)


def _quantize(weight: Tensor, grid: Grid, clip: bool, dtype: torch.dtype) -> Packed:
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    groups, size, nbytes = grid.layout(columns)
    codes = torch.empty(rows, groups, nbytes, dtype=torch.uint8)
    scales = torch.empty(rows, groups, dtype=dtype)
    zeros = torch.empty(rows, groups, dtype=torch.uint8)

    def work(part: slice) -> None:
        block = _block(weight, part, grid)
        reach, low = _full_range(block, grid)
        if dtype == torch.float16 and not fits_half(reach):
            raise _PastHalf
        scale = _stored(reach, dtype)
        zero = _zero(low, scale, grid)
        if clip:
            scale = _search(block, grid, dtype, scale, zero)
        values = _round(block, scale, zero, grid)
        codes[part] = pack(values.reshape(-1, groups, size), grid.bits)
        scales[part] = scale.reshape(-1, groups)
        zeros[part] = zero.reshape(-1, groups)

    _each(_parts(weight, grid), work)
    if not scales.isfinite().all():
        raise InputError("the weight holds NaN or Inf", "leave its layer out with `exclude`")
    stored = None if grid.symmetric else pack(zeros, grid.bits)
    return Packed(codes, scales, stored, tuple(weight.shape), grid)


def _two_level(weight: Tensor, grid: Grid, clip: bool) -> Packed:
    shapes, two_level = grid.part_shapes(tuple(weight.shape)), two_level_of(grid)
    codes, multiples = (torch.empty(shapes[name], dtype=torch.uint8) for name in ("codes", "multiples"))
    scales = torch.empty(shapes["scales"], dtype=torch.float16)

    def work(part: slice) -> None:
        block = _block(weight, part, grid).reshape(-1, two_level.groups, two_level.group_size)
        found = fit_scales(block, grid, search=clip)
        values = round_codes(block, grid, found).to(torch.uint8)
        codes[part] = pack(values.reshape(-1, codes.shape[1], two_level.group_size), grid.bits)
        scales[part], multiples[part] = to_stored(found, len(codes[part]), grid)

    _each(_parts(weight, grid), work)
    return Packed(codes, scales, None, tuple(weight.shape), grid, multiples=multiples)


def stored_dtype(weight: Tensor, grid: Grid) -> torch.dtype:
    """What :func:`quantize_rtn` stores scales as. Reads a weight of equal steps once, in blocks."""
    if grid.two_level is not None:
        return torch.float16

    def work(part: slice) -> None:
        if not fits_half(_full_range(_block(weight, part, grid), grid)[0]):
            raise _PastHalf

    try:
        _each(_parts(weight, grid), work)
    except _PastHalf:
        return torch.float32
    return torch.float16


def _parts(weight: Tensor, grid: Grid) -> list[slice]:
    """The rows of each block."""
    rows = weight.shape[0]
    groups, size, _ = grid.layout(math.prod(weight.shape[1:]))
    step = max(1, _BLOCK // (groups * size))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _each(parts: Sequence[slice], work: Callable[[slice], None]) -> None:
    """Call ``work`` for each part, on as many threads as torch may use.

    Each thread computes its block alone. torch's own threads share each operator and wait for one another after it;
    with blocks this small that was measured at 5 to 14 times slower beside one or two other busy processes.
    """
    threads = min(torch.get_num_threads(), len(parts))
    if threads < 2:
        for part in parts:
            work(part)
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            for _ in pool.map(work, parts):
                pass
    finally:
        torch.set_num_threads(before)  # the workers' setting is what threads started later would take over


def _block(weight: Tensor, part: slice, grid: Grid) -> Tensor:
    """Some rows as float32 ``(rows · groups, size)``; a view of the weight where that is possible."""
    columns = math.prod(weight.shape[1:])
    groups, size, _ = grid.layout(columns)
    block = weight.detach()[part].reshape(-1, columns)
    if short := groups * size - columns:
        block = torch.nn.functional.pad(block, (0, short))
    return block.reshape(-1, size).float()


def _full_range(block: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The scale that covers each group's range, and its lower end, as float32 ``(groups, 1)``."""
    low, high = block.amin(1, keepdim=True), block.amax(1, keepdim=True)
    if grid.symmetric:
        # The negative side has one level more: it covers the larger end when that end is negative.
        return torch.maximum(high / (grid.middle - 1), -low / grid.middle), low
    low.clamp_max_(0)
    return (high.clamp_min_(0) - low) / grid.largest, low


def _zero(low: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Zero points as float32 ``(groups, 1)``."""
    if grid.symmetric:
        return torch.full_like(scale, grid.middle)
    return (-low / scale).round_().clamp_(0, grid.largest)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale as it will be read back; 1 for an all-zero group; NaN and Inf stay."""
    return torch.where(scale < _TINY, 1.0, scale).to(dtype).float()


def _round(block: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Codes as uint8, in the shape of the block."""
    values = (block * (1.0 / scale)).add_(zero).round_().clamp_(0, grid.largest)
    return values.to(torch.int16).to(torch.uint8)  # twice as fast as in one step


def _search(block: Tensor, grid: Grid, dtype: torch.dtype, scale: Tensor, zero: Tensor) -> Tensor:
    """The best of the clipped ranges, its scale then refitted to its codes.

    With q the centred codes, |w − s·q|² = |w|² − 2s⟨q,w⟩ + s²⟨q,q⟩: two inner products give the error of a scale and
    the best scale for the same codes.
    """
    scratch, other = torch.empty_like(block), torch.empty_like(block)
    below, above = -zero, grid.largest - zero

    def fit(scale: Tensor) -> tuple[Tensor, Tensor]:
        torch.mul(block, 1.0 / scale, out=scratch).round_()
        torch.minimum(torch.maximum(scratch, below, out=scratch), above, out=scratch)  # clamp_ is four times slower
        with_w = torch.mul(scratch, block, out=other).sum(1, keepdim=True)
        with_q = torch.mul(scratch, scratch, out=other).sum(1, keepdim=True)
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

    for ratio in clip_ratios(grid, block.shape[1])[1:]:
        keep(_stored(full * ratio, dtype))
    for _ in range(_REFITS):
        keep(refit)
    return scale
