"""A weight while an algorithm rounds it column by column, in every format whose codes stand for equal steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compresskit.ops.packed.grid import Grid, Packed, unpack
from compresskit.ops.quantize.ranges import Codes, scale_dtype
from compresskit.ops.quantize.scales import least_squares_scales
from compresskit.ops.quantize.two_level import (
    Scales,
    first_code,
    fit_group,
    fit_scales,
    from_stored,
    to_stored,
    two_level_of,
)


def empty_codes(weight: Tensor, grid: Grid) -> Codes:
    """For a weight ``(parts, rows, columns)`` of which nothing is rounded yet."""
    if grid.two_level is None:
        return Codes.empty(weight, grid, scale_dtype(weight, grid))
    return TwoLevelCodes.begun(weight, grid)


def codes_of(packed: Packed, parts: int) -> Codes:
    """Of a finished weight."""
    return Codes.of(packed, parts) if packed.grid.two_level is None else TwoLevelCodes.finished(packed)


@dataclass
class TwoLevelCodes(Codes):
    """Of a matrix whose scales are stored in two levels; ``parts`` is 1.

    ``scales`` are those of the groups as they are read back, and ``zeros`` what their minima are in steps: no whole
    numbers. What is stored is ``kept``.

    Attributes:
        kept: Of all super-blocks, row after row.
    """

    kept: Scales

    @classmethod
    def begun(cls, weight: Tensor, grid: Grid) -> TwoLevelCodes:
        """Of which nothing is rounded yet."""
        _, rows, columns = weight.shape
        two_level = two_level_of(grid)
        blocks = rows * columns // (two_level.groups * two_level.group_size)
        multiples = torch.ones(blocks, two_level.kinds, two_level.groups)
        groups = torch.ones(1, rows, columns // two_level.group_size)
        kept = Scales(torch.ones(blocks, two_level.kinds), multiples)
        codes = torch.zeros(1, rows, columns)
        return cls(codes, groups, torch.zeros_like(groups), grid, torch.float16, kept)

    @classmethod
    def finished(cls, packed: Packed) -> TwoLevelCodes:
        """Of a finished weight."""
        found = cls.begun(torch.empty(1, *packed.shape, device="meta"), packed.grid)
        codes = unpack(packed.codes, packed.grid.bits, two_level_of(packed.grid).group_size)
        found.codes, found.kept = codes.float().reshape(1, *packed.shape), from_stored(packed)
        found._read()
        return found

    def fit(self, weight: Tensor, start: int, importance: Tensor) -> None:
        """See :class:`Codes`; where a super-block begins, the scales of all of its groups are searched."""
        two_level = two_level_of(self.grid)
        groups, size = two_level.groups, two_level.group_size
        block, at = start // (groups * size), start % (groups * size) // size
        rows = weight.shape[1]
        here = torch.arange(rows) * (weight.shape[2] // (groups * size)) + block
        end = start + (groups - at) * size if at == 0 else start + size
        values, matters = weight[0, :, start:end], importance[0, start:end].expand(rows, -1)
        if at == 0:
            shape = rows, groups, size
            found = fit_scales(values.reshape(shape), self.grid, matters.reshape(shape))
            self.kept.floats[here], self.kept.multiples[here] = found.floats, found.multiples
        else:
            self.kept.multiples[here, :, at] = fit_group(values, self.grid, matters, self.kept.floats[here])
        self._read()

    def refit(self, target: Tensor, gram: Tensor) -> None:
        """See :class:`Codes`; the whole numbers stay, the floats of scales and minima take turns."""
        two_level, rows = two_level_of(self.grid), len(target[0])
        size = two_level.groups * two_level.group_size
        for kind in range(two_level.kinds):
            parts = self._parts()
            wanted = target - sum(part for at, part in enumerate(parts) if at != kind)
            old = self.kept.floats[:, kind].reshape(1, rows, -1)
            basis = parts[kind] / old.repeat_interleave(size, 2)
            new = least_squares_scales(basis, old, wanted, gram, self.dtype, size=size)
            self.kept.floats[:, kind] = new.flatten()
        self._read()

    def packed(self, weight: Tensor) -> Packed:
        """See :class:`Codes`."""
        stored = super().packed(weight)
        scales, multiples = to_stored(self.kept, len(weight), self.grid)
        return replace(stored, scales=scales, multiples=multiples)

    def _parts(self) -> list[Tensor]:
        """What the weight is the sum of, ``(1, rows, columns)`` each: codes by their scales, and less their minima."""
        columns = self.codes.shape[2]
        scaled = (self.codes - first_code(self.grid)) * self.spread(columns)
        if not two_level_of(self.grid).minima:
            return [scaled]
        size = two_level_of(self.grid).group_size
        return [scaled, -(self.zeros * self.scales).repeat_interleave(size, 2)]

    def _read(self) -> None:
        """Scales and zeros as they follow from what is kept."""
        scale, minimum = self.kept.groups()
        self.scales = scale.reshape(self.scales.shape)
        self.zeros = minimum.reshape(self.scales.shape) / self.scales + first_code(self.grid)
