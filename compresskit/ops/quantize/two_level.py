"""Scales that are stored in two levels: found first, as they will be read back, so that codes are rounded to these.

For each group the range of least squared error is searched, as llama.cpp does for its K-quants; the largest range of a
super-block gives its float16, and each group then takes the whole numbers, among those next to its range, that leave
the least error. Floats and whole numbers take turns twice. What is here and not in llama.cpp: whole numbers are chosen
by the error they leave, ranges are refitted to the input moments that an algorithm has, and no scale is ever 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from compresskit.errors import InputError
from compresskit.ops.packed.format import TwoLevel
from compresskit.ops.packed.grid import Grid, Packed, pack, whole_numbers

_TURNS = 2
_LEAST, _MOST = 2.0**-24, 65504.0
"""float16 scales; smaller weights than that allows are 0."""
_TINY = 1e-30


@dataclass(frozen=True)
class Scales:
    """Scales of the groups of super-blocks, and their minima.

    Attributes:
        floats: float32 ``(n, kinds)``, holding values of float16: of the scales, and where there are minima of these.
        multiples: float32 ``(n, kinds, groups)``, whole numbers.
    """

    floats: Tensor
    multiples: Tensor

    def groups(self) -> tuple[Tensor, Tensor]:
        """Scales and minima as they are read back, float32 ``(n, groups)`` each; minima are 0 where there are none."""
        scales, *minima = (self.floats.unsqueeze(-1) * self.multiples).unbind(1)
        return scales, minima[0] if minima else torch.zeros_like(scales)


def first_code(grid: Grid) -> int:
    """The code that stands for what the minimum takes away: 0, or the middle where scales are signed."""
    return grid.format.zero(grid.bits) or 0


def two_level_of(grid: Grid) -> TwoLevel:
    """How a grid's scales are stored.

    Raises:
        ValueError: In one level.
    """
    if grid.two_level is None:
        raise ValueError(f"{grid.dtype} has scales in one level")
    return grid.two_level


def fit_scales(block: Tensor, grid: Grid, importance: Tensor | None = None, *, search: bool = True) -> Scales:
    """Scales for super-blocks.

    Args:
        block: float32 ``(n, groups, size)``.
        grid: With scales in two levels.
        importance: float32, of the same shape: the weight of each squared error, not negative; None for all alike.
        search: Try other ranges than the whole one of each group.

    Raises:
        InputError: The weight holds NaN or Inf.
    """
    if not block.isfinite().all():
        raise InputError("the weight holds NaN or Inf", "leave its layer out with `exclude`")
    matters = torch.ones_like(block) if importance is None else importance
    wanted = _ranges(block, grid, matters, search=search)
    best, least = _nearest(block, grid, matters, wanted, _first_floats(wanted, two_level_of(grid)))
    for _ in range(_TURNS if search else 0):
        tried, error = _nearest(block, grid, matters, best.groups(), _refitted(block, grid, matters, best))
        better = error.sum(1) < least.sum(1)
        least = torch.where(better[:, None], error, least)
        best = Scales(
            torch.where(better[:, None], tried.floats, best.floats),
            torch.where(better[:, None, None], tried.multiples, best.multiples),
        )
    return best


def fit_group(block: Tensor, grid: Grid, importance: Tensor, floats: Tensor) -> Tensor:
    """The whole numbers of one group of each super-block, whose floats stay.

    Args:
        block: float32 ``(n, size)``.
        grid: With scales in two levels.
        importance: As of :func:`fit_scales`.
        floats: float32 ``(n, kinds)``.

    Returns:
        float32 ``(n, kinds)``.
    """
    block, importance = block.unsqueeze(1), importance.unsqueeze(1)
    found, _ = _nearest(block, grid, importance, _ranges(block, grid, importance), floats)
    return found.multiples.squeeze(-1)


def round_codes(block: Tensor, grid: Grid, scales: Scales) -> Tensor:
    """Codes float32 ``(n, groups, size)`` of super-blocks."""
    scale, minimum = (part.unsqueeze(-1) for part in scales.groups())
    return _codes(block, grid, scale, minimum)


def to_stored(scales: Scales, rows: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scales of the super-blocks of some rows, one row after the other, as :class:`Packed` has them.

    Returns:
        float16 ``(rows, kinds · super-blocks)`` and uint8 ``(rows, bytes)``.
    """
    two_level = two_level_of(grid)
    offset = 0 if two_level.minima else 1 << (two_level.bits - 1)
    floats = scales.floats.half().reshape(rows, -1, two_level.kinds).mT.flatten(1)
    multiples = (scales.multiples + offset).to(torch.uint8)
    ordered = multiples.reshape(rows, -1, two_level.kinds, two_level.groups).transpose(1, 2).flatten(1)
    return floats, pack(ordered, two_level.bits)


def from_stored(packed: Packed) -> Scales:
    """The inverse of :func:`to_stored`."""
    (two_level, whole), rows = whole_numbers(packed), len(packed.codes)
    multiples = whole.reshape(rows, two_level.kinds, -1, two_level.groups).transpose(1, 2).flatten(0, 1)
    return Scales(packed.scales.float().reshape(rows, two_level.kinds, -1).mT.flatten(0, 1), multiples)


def _codes(block: Tensor, grid: Grid, scale: Tensor, minimum: Tensor) -> Tensor:
    return (block + minimum).div_(scale).add_(first_code(grid)).round_().clamp_(0, grid.largest)


def _error(block: Tensor, grid: Grid, matters: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """What rounding to these ranges leaves of each group: ``(n, groups)``."""
    found = _codes(block, grid, scale.unsqueeze(-1), minimum.unsqueeze(-1)).sub_(first_code(grid))
    left = found.mul_(scale.unsqueeze(-1)).sub_(minimum.unsqueeze(-1)).sub_(block)
    return left.square_().mul_(matters).sum(-1)


def _ranges(block: Tensor, grid: Grid, matters: Tensor, *, search: bool = True) -> tuple[Tensor, Tensor]:
    """The scale and the minimum of least error of each group, any float32 numbers: ``(n, groups)`` each."""
    whole, *cut = _with_minima(block, grid) if two_level_of(grid).minima else _signed(block, grid)
    if not search:
        return whole
    (scale, minimum), least = whole, _error(block, grid, matters, *whole)
    for start in (whole, *cut):
        new = _least_squares(block, grid, matters, *start)
        error = _error(block, grid, matters, *new)
        better = error < least
        least = torch.where(better, error, least)
        scale, minimum = torch.where(better, new[0], scale), torch.where(better, new[1], minimum)
    return scale, minimum


def _with_minima(block: Tensor, grid: Grid) -> list[tuple[Tensor, Tensor]]:
    """Ranges to try: whole ones, and some that are cut at either end, or at both."""
    low, high = block.amin(-1).clamp_max_(0), block.amax(-1)
    width = (high - low).clamp_min_(_TINY)
    tried = [(width / grid.largest, -low)]
    for ratio in {2: (0.9, 0.8, 0.7, 0.6), 4: (0.94, 0.88, 0.82)}.get(grid.bits, (0.97, 0.93)):
        for share in (0.0, 0.5, 1.0):  # of the cut taken off the low end
            start = (low + share * (1 - ratio) * width).clamp_max_(0)
            tried.append((width * (ratio / grid.largest), -start))
    return tried


def _signed(block: Tensor, grid: Grid) -> list[tuple[Tensor, Tensor]]:
    """Ranges to try, the side that has one code more on either side."""
    top = block.gather(-1, block.abs().argmax(-1, keepdim=True)).squeeze(-1)
    top = torch.where(top.abs() < _TINY, _TINY, top)
    ratios = (1.0, 1.15, 0.92, 0.84, 0.76, 0.68, 0.6) if grid.bits < 4 else (1.0, 0.97, 0.93)
    sides = (-grid.middle, grid.middle - 1)
    return [(top * (ratio / side), torch.zeros_like(top)) for ratio in ratios for side in sides]


def _least_squares(block: Tensor, grid: Grid, matters: Tensor, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the minimum that suit the codes of these ones best."""
    found = _codes(block, grid, scale.unsqueeze(-1), minimum.unsqueeze(-1)).sub_(first_code(grid))
    with_code = found * matters
    square, with_block = (with_code * found).sum(-1), (with_code * block).sum(-1)
    alone = torch.where(square > 0, with_block / square.clamp_min(_TINY), scale)
    if not two_level_of(grid).minima:
        return torch.where(alone.abs() < _TINY, scale, alone), minimum
    count, codes, weight = matters.sum(-1), with_code.sum(-1), (matters * block).sum(-1)
    area = count * square - codes * codes
    slope = (count * with_block - codes * weight) / area.clamp_min(_TINY)
    below = (slope * codes - weight) / count.clamp_min(_TINY)
    usable = (area > _TINY) & (slope > 0)
    new = torch.where(usable & (below >= 0), slope, torch.where(alone > 0, alone, scale))
    return new.clamp_min_(_TINY), torch.where(usable, below.clamp_min_(0), torch.zeros_like(minimum))


def _first_floats(wanted: tuple[Tensor, Tensor], two_level: TwoLevel) -> Tensor:
    """Floats whose largest multiple reaches the largest range of a super-block: ``(n, kinds)``."""
    scale, minimum = wanted
    if two_level.minima:
        most = (1 << two_level.bits) - 1
        return _stored(torch.stack([scale.amax(1) / most, minimum.amax(1) / most], 1))
    most = 1 << (two_level.bits - 1)
    return _stored(torch.maximum(scale.amax(1) / (most - 1), -scale.amin(1) / most).unsqueeze(1))


def _stored(floats: Tensor) -> Tensor:
    """As they are read back; 1 where they would be of no use."""
    return torch.where(floats < _TINY, 1.0, floats.clamp(_LEAST, _MOST)).half().float()


def _nearest(
    block: Tensor, grid: Grid, matters: Tensor, wanted: tuple[Tensor, Tensor], floats: Tensor
) -> tuple[Scales, Tensor]:
    """The whole numbers of least error among those near the ranges that are wanted, and what they leave."""
    two_level = two_level_of(grid)
    near = [(part / floats[:, at, None]).round_() for at, part in enumerate(wanted[: two_level.kinds])]
    best, least = torch.stack(near, 1), torch.full_like(near[0], torch.inf)
    for shifts in product((0, -1, 1), repeat=two_level.kinds):
        tried = torch.stack(
            [_allowed(part + shift, two_level, at) for at, (part, shift) in enumerate(zip(near, shifts, strict=True))],
            1,
        )
        error = _error(block, grid, matters, *Scales(floats, tried).groups())
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better.unsqueeze(1), tried, best)
    return Scales(floats, best), least


def _allowed(multiple: Tensor, two_level: TwoLevel, kind: int) -> Tensor:
    """Whole numbers that can be stored; a scale of 0 is never better than the smallest one."""
    if two_level.minima:
        return multiple.clamp(1 - kind, (1 << two_level.bits) - 1)
    most = 1 << (two_level.bits - 1)
    return torch.where(multiple == 0, 1.0, multiple.clamp(-most, most - 1))


def _refitted(block: Tensor, grid: Grid, matters: Tensor, scales: Scales) -> Tensor:
    """The floats of least error for the codes and whole numbers there are; old ones where they would not be usable."""
    found = round_codes(block, grid, scales).sub_(first_code(grid)).mul_(scales.multiples[:, 0, :, None])
    old = scales.floats
    if not two_level_of(grid).minima:
        square, with_block = (matters * found * found).sum((1, 2)), (matters * found * block).sum((1, 2))
        new = (with_block / square.clamp_min(_TINY)).unsqueeze(1)
        return torch.where((new > old / 4) & (new < 4 * old), _stored(new), old)
    minus = scales.multiples[:, 1, :, None].expand_as(found).neg()
    basis = torch.stack([found, minus], 1).flatten(2)
    normal = (basis * matters.flatten(1).unsqueeze(1)) @ basis.mT
    right = (basis * (matters * block).flatten(1).unsqueeze(1)).sum(-1)
    normal = normal + 1e-9 * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(_TINY) * torch.eye(2)
    new = torch.linalg.solve_ex(normal, right.unsqueeze(-1))[0].squeeze(-1)
    usable = ((new > old / 4) & (new < 4 * old)).all(1, keepdim=True)
    return torch.where(usable, _stored(new), old)
