"""Scales as they are stored, and those of least output error for codes that stay."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from compresskit.errors import InputError

_TINY = 1e-35
_RIDGE = 1e-3
_ELEMENTS = 1 << 24
"""Of the systems of equations that are built at once, a row's has ``groups²``."""
_FELT = 1 << 20
"""Weights whose systems are built at once: their products with the gram stay in the caches."""


def as_stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they will be read back; 1 for an all-zero group.

    Raises:
        InputError: A scale is NaN or Inf.
    """
    kept = torch.where(scale < _TINY, 1.0, scale).to(dtype).float()
    if not kept.isfinite().all():
        raise InputError("the weight holds NaN or Inf", "leave its layer out with `exclude`")
    return kept


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
