"""4-bit NormalFloat: codes into a table of 16 levels, one largest magnitude for each group.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs" (2023), arXiv:2305.14314. Codes and values equal those
of bitsandbytes where the columns are a multiple of the group size; where they aren't, a group here ends with its row,
there it goes on in the next one. Left out: the second quantization of the scales.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compresskit.errors import InputError
from compresskit.ops.packed.grid import NF4, Grid, Packed, pack

__all__ = ["NF4", "nf4_grid", "quantize_nf4"]

_TINY = 1e-38
_BLOCK = 1 << 18


def nf4_grid(group_size: int = 64) -> Grid:
    """The grid of :func:`quantize_nf4`."""
    return Grid(4, group_size, symmetric=True, kind="nf4")


def quantize_nf4(weight: Tensor, grid: Grid) -> Packed:
    """Quantize a weight without calibration, in blocks of rows.

    Args:
        weight: Floating point, first axis = outputs.
        grid: Of kind ``nf4``.

    Returns:
        Codes, and float32 scales: float16 ones would save a quarter of a bit, and give other values than bitsandbytes.

    Raises:
        InputError: The weight holds NaN or Inf.
    """
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    groups, size, nbytes = grid.layout(columns)
    codes = torch.empty(rows, groups, nbytes, dtype=torch.uint8)
    scales = torch.empty(rows, groups)
    bounds = (NF4[1:] + NF4[:-1]) / 2
    step = max(1, _BLOCK // (groups * size))
    for start in range(0, rows, step):
        block = weight.detach()[start : start + step].reshape(-1, columns).float()
        block = torch.nn.functional.pad(block, (0, groups * size - columns)).reshape(-1, groups, size)
        largest = block.abs().amax(-1)
        # The reciprocal first, as bitsandbytes does: a quotient is now and then rounded to the other side of a bound.
        values = (block * (1.0 / largest.clamp(min=_TINY)).unsqueeze(-1)).clamp_(-1, 1)
        codes[start : start + step] = pack(torch.bucketize(values, bounds, out_int32=True).to(torch.uint8), 4)
        scales[start : start + step] = largest
    if not scales.isfinite().all():
        raise InputError("the weight holds NaN or Inf", "leave its layer out with --exclude")
    return Packed(codes, scales, None, tuple(weight.shape), grid)
