"""What a rounded weight can still gain from the second moments of its inputs, whatever algorithm rounded it.

Codes: one column after the other moves to the level that is best given all others, until a pass changes little:
cyclic coordinate descent, as in "QuantEase: Optimization-based Quantization for Language Models" (Behdin et al.,
2023). Scales: for given codes the best scales of a row are the solution of a small linear system. Neither step can
raise the error.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import damped, damping_of, flat_weight
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.packed.grid import Packed
from compresskit.ops.quantize.ranges import Codes, as_stored

_PIECE = 64
"""Columns moved before the gradient of all others is updated."""
_MARGIN = 1e-3
"""Of a level: a code changes only where the other level is nearer by more than this."""
_RIDGE = 1e-3
_ELEMENTS = 1 << 24
"""Of the systems of equations that are built at once, a row's has ``groups²``."""
_FELT = 1 << 20
"""Weights whose systems are built at once: their products with the gram stay in the caches."""


def refine(
    weight: Tensor, packed: Packed, moments: Moments, *, rounds: int = 2, damping: float | None = None
) -> Packed:
    """Lower the output error of a rounded weight; its zero points and its layout stay.

    Args:
        weight: What the packed weight stands for, ``(outputs, …)``.
        packed: The rounded weight.
        moments: Of the layer's inputs.
        rounds: Times that scales and codes take turns.
        damping: As in :func:`~compresskit.ops.quantize.gptq.quantize_gptq`.
    """
    target, gram = flat_weight(weight, moments), damped(moments.gram, damping_of(moments, damping))
    found = Codes.of(packed, len(target))
    for _ in range(rounds):
        values, size = found.centred(target.shape[2]), found.codes.shape[2] // found.scales.shape[2]
        found.scales = least_squares_scales(values, found.scales, target, gram, found.dtype, size=size)
        _descend(found, target, gram)
    return found.packed(weight)


def least_squares_scales(
    values: Tensor, old: Tensor, target: Tensor, gram: Tensor, dtype: torch.dtype, *, size: int
) -> Tensor:
    """The scales of least output error; a row keeps its old ones where they would not be positive or better.

    Args:
        values: What codes stand for at scale 1, float32 ``(parts, rows, columns)``.
        old: Scales, float32 ``(parts, rows, groups)``.
        target: What the products of both are to be, as ``values``.
        gram: float32 ``(parts, columns, columns)``.
        dtype: What scales are stored as.
        size: Columns of a group.
    """
    parts, rows, groups = old.shape
    columns = target.shape[2]
    at_once = max(1, min(_ELEMENTS // groups**2, _FELT // columns))
    if rows > at_once:
        pieces = (slice(start, start + at_once) for start in range(0, rows, at_once))
        solve = partial(least_squares_scales, gram=gram, dtype=dtype, size=size)
        return torch.cat([solve(values[:, piece], old[:, piece], target[:, piece]) for piece in pieces], 1)
    normal = torch.empty(parts, rows, groups, groups)
    for group in range(groups):  # the system is symmetric: what lies before the diagonal is copied
        first = group * size
        part = slice(first, min(first + size, columns))
        felt = (values[..., part] @ gram[:, part, first:]).mul_(values[..., first:])
        normal[..., group, group:] = _by_group(felt, groups - group, size)
        normal[..., group + 1 :, group] = normal[..., group, group + 1 :]
    wanted = _by_group((target @ gram) * values, groups, size)
    level = normal.diagonal(dim1=2, dim2=3).mean(-1)[..., None, None].clamp_min(1e-30)
    ridge = _RIDGE * level * torch.eye(groups)
    pull = (ridge @ old.unsqueeze(-1)).squeeze(-1)  # towards the old scales
    factor, _ = torch.linalg.cholesky_ex(normal + ridge)  # where it fails it gives no usable scale, and raises nothing
    new = torch.cholesky_solve((wanted + pull).unsqueeze(-1), factor).squeeze(-1)
    usable = (new > 0.25 * old) & (new < 4 * old) & new.isfinite()
    new = as_stored(torch.where(usable, new, old), dtype)

    def loss(scales: Tensor) -> Tensor:
        return ((normal @ scales.unsqueeze(-1)).squeeze(-1) * scales - 2 * wanted * scales).sum(-1, keepdim=True)

    return torch.where(loss(new) < loss(old), new, old)


def _by_group(values: Tensor, groups: int, size: int) -> Tensor:
    """Sums over the columns of each group: ``(…, columns)`` to ``(…, groups)``."""
    if short := groups * size - values.shape[-1]:
        values = torch.nn.functional.pad(values, (0, short))
    return values.reshape(*values.shape[:-1], groups, size).sum(-1)


def _descend(found: Codes, target: Tensor, gram: Tensor) -> None:
    """One pass over the columns; changes the codes in place."""
    columns = target.shape[2]
    size = found.codes.shape[2] // found.scales.shape[2]
    slope = (found.centred(columns) * found.spread(columns) - target) @ gram
    curve = gram.diagonal(dim1=1, dim2=2)
    for start in range(0, columns, _PIECE):
        end = min(start + _PIECE, columns)
        # Columns lie one after the other here, since each is read and written whole; in the weight, rows do.
        near, codes = slope[..., start:end].mT.contiguous(), found.codes[..., start:end].mT.contiguous()
        moved = torch.zeros_like(near)
        for at, column in enumerate(range(start, end)):
            scale, old = found.scales[..., column // size], codes[:, at]
            wish = old - near[:, at] / (curve[:, column, None] * scale)
            new = wish.round().clamp_(0, found.grid.largest)
            stay = (wish - old).abs() <= (wish - new).abs() + _MARGIN
            change = torch.where(stay, 0.0, new - old)
            old += change
            moved[:, at] = change * scale
            near.baddbmm_(gram[:, start:end, column, None], moved[:, at, None])
        found.codes[..., start:end] = codes.mT
        if end < columns:
            slope[..., end:].baddbmm_(moved.mT, gram[:, start:end, end:])
