"""Half-quadratic quantization: data-free ranges that outliers don't pull at.

"Half-Quadratic Quantization of Large Machine Learning Models" (Badri & Shaji, 2023): the p-norm of the rounding error
with p < 1 is minimized instead of its square, by splitting off the few large errors with a shrinkage step and fitting
the range to the rest. There only the zero points are fitted, and are real numbers; here they are integers, as stored,
and scales are fitted in turn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compresskit.ops.packed.grid import Grid, Packed
from compresskit.ops.quantize.ranges import Codes, scale_dtype
from compresskit.ops.quantize.scales import as_stored

_NORM = 0.7
_START, _GROWTH, _STEPS = 10.0, 1.05, 20
_BLOCK = 1 << 20


def quantize_hqq(weight: Tensor, grid: Grid) -> Packed:
    """Quantize a weight without calibration.

    Args:
        weight: Floating point, first axis = outputs. Worked on in blocks of rows.
        grid: Bits, group size and symmetry.

    Raises:
        InputError: The weight holds NaN or Inf.
    """
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    groups, size, _ = grid.layout(columns)
    step = max(1, _BLOCK // (groups * size))
    whole: Codes | None = None
    for start in range(0, rows, step):
        part = weight.detach()[start : start + step].reshape(1, -1, columns).float()
        if whole is None:
            whole = Codes.empty(torch.empty(1, rows, columns, device="meta"), grid, _dtype(weight, grid, step))
        padded = torch.nn.functional.pad(part, (0, groups * size - columns))
        codes, scale, zero = _fitted(padded.reshape(-1, size), grid, whole.dtype)
        whole.codes[:, start : start + step] = codes.reshape(1, -1, groups * size)
        whole.scales[:, start : start + step] = scale.reshape(1, -1, groups)
        whole.zeros[:, start : start + step] = zero.reshape(1, -1, groups)
    if whole is None:
        raise ValueError("a weight without rows")
    return whole.packed(weight)


def _dtype(weight: Tensor, grid: Grid, step: int) -> torch.dtype:
    columns = math.prod(weight.shape[1:])
    parts = (weight.detach()[i : i + step].reshape(1, -1, columns).float() for i in range(0, weight.shape[0], step))
    return torch.float32 if any(scale_dtype(part, grid) == torch.float32 for part in parts) else torch.float16


def _fitted(block: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``(n, size)``, scales and zero points ``(n, 1)`` of groups ``(n, size)``, all float32."""
    low, high = block.amin(1, keepdim=True).clamp_max(0), block.amax(1, keepdim=True).clamp_min(0)
    if grid.symmetric:
        scale = as_stored(torch.maximum(high / (grid.middle - 1), -low / grid.middle), dtype)
        zero = torch.full_like(scale, float(grid.middle))
    else:
        scale = as_stored((high - low) / grid.largest, dtype)
        zero = (-low / scale).round_().clamp_(0, grid.largest)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    least, beta = torch.full_like(scale, torch.inf), _START
    level = block.square().mean(1, keepdim=True).sqrt().clamp_min(1e-30)  # beta is made for weights of size one
    for _ in range(_STEPS):
        codes = (block / scale + zero).round_().clamp_(0, grid.largest)
        error = (block - (codes - zero) * scale) / level
        size = error.abs().pow(_NORM).sum(1, keepdim=True)
        better = size < least
        least = torch.where(better, size, least)
        found = (codes, scale, zero)
        best = found if best is None else tuple(torch.where(better, a, b) for a, b in zip(found, best, strict=True))  # type: ignore[assignment]
        split = error.sign() * (error.abs() - (error.abs() + 1e-8).pow(_NORM - 1) / beta).clamp_min_(0)
        rest = block - split * level
        if not grid.symmetric:
            zero = (codes - rest / scale).mean(1, keepdim=True).round_().clamp_(0, grid.largest)
        centred = codes - zero
        with_w, with_q = (centred * rest).sum(1, keepdim=True), centred.square().sum(1, keepdim=True)
        scale = as_stored(torch.where((with_w > 0) & (with_q > 0), with_w / with_q, scale), dtype)
        beta *= _GROWTH
    if best is None:
        raise ValueError("no step was made")
    return best
