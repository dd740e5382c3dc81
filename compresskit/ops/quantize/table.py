"""Rounding to nearest in formats that have a table of levels: each group's scale makes the table reach its ends.

For NF4 (Dettmers et al., "QLoRA", 2023, arXiv:2305.14314) codes and values equal those of bitsandbytes where the
columns are a multiple of the group size; where they aren't, a group here ends with its row, there it goes on in the
next one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compresskit.errors import InputError
from compresskit.ops.packed.grid import Grid, Packed, fits_half, pack

_TINY = 1e-38
_BLOCK = 1 << 18


def quantize_table(weight: Tensor, grid: Grid) -> Packed:
    """Quantize a weight without calibration, in blocks of rows.

    Args:
        weight: Floating point, first axis = outputs.
        grid: Of a format with a table of levels.

    Returns:
        Codes, and scales in the format's dtype; in float32 where float16 can't hold them.

    Raises:
        InputError: The weight holds NaN or Inf.
    """
    if grid.format.levels is None:
        raise ValueError(f"{grid.format.name} has no table of levels")
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    groups, size, nbytes = grid.layout(columns)
    levels = torch.tensor(grid.format.levels)
    bounds, step = (levels[1:] + levels[:-1]) / 2, max(1, _BLOCK // (groups * size))
    parts = [slice(start, start + step) for start in range(0, rows, step)]

    def block(part: slice) -> Tensor:
        found = weight.detach()[part].reshape(-1, columns).float()
        return torch.nn.functional.pad(found, (0, groups * size - columns)).reshape(-1, groups, size)

    scales = torch.cat([_reach(block(part), levels) for part in parts])
    if not scales.isfinite().all():
        raise InputError("the weight holds NaN or Inf", "leave its layer out with `exclude`")
    if grid.format.scales == "float16" and fits_half(scales):
        scales = scales.half()
    codes = torch.empty(rows, groups, nbytes, dtype=torch.uint8)
    for part in parts:
        # The reciprocal first, as bitsandbytes does: a quotient is now and then rounded to the other side of a bound.
        values = block(part) * (1.0 / scales[part].float().clamp(min=_TINY)).unsqueeze(-1)
        codes[part] = pack(torch.bucketize(values, bounds, out_int32=True).to(torch.uint8), grid.bits)
    return Packed(codes, scales, None, tuple(weight.shape), grid)


def _reach(block: Tensor, levels: Tensor) -> Tensor:
    """The scales with which the outermost levels are each group's ends: float32 ``(rows, groups)``."""
    low, high = block.amin(-1), block.amax(-1)
    found = [end / level for end, level in ((low, levels[0]), (high, levels[-1])) if level]
    return torch.stack(found).amax(0).clamp_min(0.0) + 0.0  # no negative zeros
