"""What palettes gain from all second moments of the inputs, beyond their diagonal.

The errors of a column go where later columns can compensate them, as in GPTQ (``gptq.py``). Then levels, scales and
codes take turns: for given codes the best levels of a table are the solution of a small linear system, scales and codes
follow as in ``refine.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskit.ops.calibration.gram import damped, damping_of, flat_weight, inverse_factor
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.packed.grid import Grid, Packed
from compresskit.ops.quantize.palette import Palette, fit, with_zero
from compresskit.ops.quantize.scales import least_squares_scales

_PIECE = 64
_RIDGE = 1e-3
_MARGIN = 1e-3
"""Of the distance of two levels: a code changes only where another level is nearer by more than this."""
_WORK = 3e10
"""Multiplications that a solution for levels may take; where it would take more they stay."""


def calibrate_palette(
    weight: Tensor, grid: Grid, moments: Moments, *, rounds: int = 3, damping: float | None = None
) -> Packed:
    """Quantize a weight to levels that are found for it and for what it is fed.

    Args:
        weight: ``(outputs, …)``; the outputs of a convolution lie group after group.
        grid: Of a format with stored levels.
        moments: Of the layer's inputs.
        rounds: Times that levels, scales and codes take turns after rounding.
        damping: As in :func:`~compresskit.ops.quantize.gptq.quantize_gptq`.

    Raises:
        InputError: The weight or the moments hold NaN or Inf.
    """
    target = flat_weight(weight, moments)
    share = damping_of(moments, damping)
    found = fit(target.flatten(0, 1), grid, moments.gram.diagonal(dim1=1, dim2=2))
    sparse = bool((found.levels == 0).any())
    _compensate(found, target, inverse_factor(moments.gram, share))
    gram = damped(moments.gram, share)
    for _ in range(rounds):
        _solve_levels(found, target, gram, sparse)
        _solve_scales(found, target, gram)
        _descend(found, target, gram)
    return found.packed(tuple(weight.shape))


def _compensate(found: Palette, target: Tensor, factor: Tensor) -> None:
    """Round column by column, each error spread over the columns that are still to come."""
    parts, rows, columns = target.shape
    work, step = target.clone(), _Step(found)
    for start in range(0, columns, _PIECE):
        end = min(start + _PIECE, columns)
        errors = torch.empty(parts, rows, end - start)
        for column in range(start, end):
            value = work[..., column]
            rounded = step.take(column, value.reshape(-1)).reshape(parts, rows)
            error = (value - rounded) / factor[:, column, column, None]
            errors[..., column - start] = error
            work[..., column:end] -= error.unsqueeze(2) * factor[:, column, None, column:end]
        work[..., end:] -= errors @ factor[:, start:end, end:]


class _Step:
    """One column after the other of a palette."""

    def __init__(self, found: Palette) -> None:
        self._found, self._size = found, found.codes.shape[2]

    def take(self, column: int, values: Tensor) -> Tensor:
        """Code the weights of a column, ``(rows,)``; gives what the codes stand for."""
        found, group = self._found, column // self._size
        scale = found.scales[:, group]
        codes = found.nearest((values / scale).reshape(-1, 1, 1), slice(group, group + 1))
        found.codes[:, group, column % self._size] = codes.reshape(-1)
        return self.standing(column)

    def standing(self, column: int) -> Tensor:
        """What the codes of a column stand for, ``(rows,)``."""
        found, group = self._found, column // self._size
        codes = found.codes[:, group, column % self._size].long().unsqueeze(1)
        table = found.levels[:, group if found.levels.shape[1] > 1 else 0]
        return table.expand(len(codes), -1).gather(1, codes).squeeze(1) * found.scales[:, group]


def _flat(found: Palette, target: Tensor) -> Tensor:
    """What codes stand for at scale 1, without padding: ``(parts, rows, columns)``."""
    return found.values().flatten(1)[:, : target.shape[2]].reshape(target.shape)


def _spread(found: Palette, target: Tensor) -> Tensor:
    """The scale of each weight, ``(parts, rows, columns)``."""
    wide = found.scales.repeat_interleave(found.codes.shape[2], 1)
    return wide[:, : target.shape[2]].reshape(target.shape)


def _solve_scales(found: Palette, target: Tensor, gram: Tensor) -> None:
    parts, rows, _ = target.shape
    old = found.scales.reshape(parts, rows, -1)
    size = found.codes.shape[2]
    new = least_squares_scales(_flat(found, target), old, target, gram, found.dtype, size=size)
    found.scales = new.reshape(found.scales.shape)


def _solve_levels(found: Palette, target: Tensor, gram: Tensor, sparse: bool) -> None:
    """The least-squares levels of the codes, table by table; those that no code names stay."""
    parts, rows, columns = target.shape
    each_rows, each_groups, count = found.levels.shape
    if each_groups > 1 or parts * rows * columns**2 * count > _WORK:
        return
    codes = found.codes.flatten(1)[:, :columns].reshape(target.shape).long()
    marks = F.one_hot(codes, count).float() * _spread(found, target).unsqueeze(-1)  # (parts, rows, columns, count)
    felt = torch.einsum("pij,prjk->prik", gram, marks)
    normal, wanted = torch.einsum("prik,pril->prkl", marks, felt), torch.einsum("pri,prik->prk", target, felt)
    shape = (each_rows, -1) if each_rows == 1 else (each_rows, 1)
    normal, wanted = normal.reshape(*shape, count, count).sum(1), wanted.reshape(*shape, count).sum(1)
    old = found.levels.reshape(each_rows, count)
    level = normal.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None].clamp_min(1e-30)
    ridge = _RIDGE * level * torch.eye(count)
    new = torch.linalg.solve(normal + ridge, wanted + (ridge @ old.unsqueeze(-1)).squeeze(-1))
    if new.isfinite().all() and bool((new.diff() > 0).all()):
        found.keep_levels(with_zero(new.reshape(found.levels.shape), sparse))


def _descend(found: Palette, target: Tensor, gram: Tensor) -> None:
    """One pass over the columns: each code moves to the level that is best given all others."""
    parts, rows, columns = target.shape
    slope = (_flat(found, target) * _spread(found, target) - target) @ gram
    curve, step = gram.diagonal(dim1=1, dim2=2), _Step(found)
    size = found.codes.shape[2]
    for start in range(0, columns, _PIECE):
        end = min(start + _PIECE, columns)
        near = slope[..., start:end].clone()
        moved = torch.zeros_like(near)
        for column in range(start, end):
            before, old = step.standing(column), found.codes[:, column // size, column % size].clone()
            wish = before - (near[..., column - start] / curve[:, column, None]).reshape(-1)
            after = step.take(column, wish)
            stay = (wish - before).abs() <= (wish - after).abs() + _MARGIN * (after - before).abs()
            found.codes[:, column // size, column % size] = torch.where(
                stay, old, found.codes[:, column // size, column % size]
            )
            shift = torch.where(stay, 0.0, after - before).reshape(parts, rows)
            moved[..., column - start] = shift
            near += shift.unsqueeze(2) * gram[:, column, None, start:end]
        slope += moved @ gram[:, start:end]
