"""Which layers are quantized and how, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from compresskit.errors import UsageError, listing
from compresskit.ops.quantize.grid import Grid

_SCALE_BYTES = 2
_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Selection:
    """What the user asked for.

    Attributes:
        bits: 4 or 8.
        group_size: Most columns that share a scale on Linear and Embedding; 0 is the whole row.
        symmetric: No stored zero points.
        include: Globs of layer names; empty means all.
        exclude: Globs of layer names; stronger than ``include``.
    """

    bits: int
    group_size: int
    symmetric: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def check(self, names: Iterable[str]) -> None:
        """Every pattern must match a layer.

        Raises:
            UsageError: Naming the patterns that match nothing, and some layers there are.
        """
        known = list(names)
        idle = [p for p in (*self.include, *self.exclude) if not any(fnmatchcase(n, p) for n in known)]
        if idle:
            raise UsageError(f"no layer matches {listing(idle)}", f"layers here: {listing(known, 6)}")

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """Per channel for convolutions (3 axes and more), grouped for matrices.

        Where the columns don't fill the last group, the group size that takes the fewest bytes is chosen, at least 16:
        64 columns get a group of 64 even if 128 was asked for.
        """
        if len(shape) > 2 or self.group_size == 0:
            return Grid(self.bits, 0, self.symmetric)
        sizes = [size for size in _SIZES if size <= self.group_size]
        grids = [Grid(self.bits, size, self.symmetric) for size in sizes]
        return min(grids, key=lambda grid: (_row_bytes(grid, shape[1]), -grid.group_size))

    def reason_against(self, name: str, shape: tuple[int, ...], itemsize: int) -> str | None:
        """None when the layer is to be quantized, else why not."""
        if self.include and not any(fnmatchcase(name, p) for p in self.include):
            return "not included"
        if any(fnmatchcase(name, p) for p in self.exclude):
            return "excluded"
        columns = math.prod(shape[1:])
        if _row_bytes(self.grid(shape), columns) >= columns * itemsize:
            return f"would not get smaller ({columns} columns)"
        return None


def _row_bytes(grid: Grid, columns: int) -> int:
    groups, _, nbytes = grid.layout(columns)
    zeros = 0 if grid.symmetric else math.ceil(groups * grid.bits / 8)
    return groups * (nbytes + _SCALE_BYTES) + zeros
