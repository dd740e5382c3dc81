"""Which layers are quantized and how, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from compresskit.errors import UsageError, listing
from compresskit.ops.quantize.grid import Grid

_SCALE_BYTES = 2


@dataclass(frozen=True)
class Selection:
    """What the user asked for.

    Attributes:
        bits: 4 or 8.
        group_size: Columns that share a scale on Linear and Embedding.
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
        """Per channel for convolutions (3 axes and more), grouped for matrices."""
        return Grid(self.bits, 0 if len(shape) > 2 else self.group_size, self.symmetric)

    def reason_against(self, name: str, shape: tuple[int, ...], itemsize: int) -> str | None:
        """None when the layer is to be quantized, else why not."""
        if self.include and not any(fnmatchcase(name, p) for p in self.include):
            return "not included"
        if any(fnmatchcase(name, p) for p in self.exclude):
            return "excluded"
        rows, columns = shape[0], math.prod(shape[1:])
        grid = self.grid(shape)
        groups, _, nbytes = grid.layout(columns)
        zeros = 0 if grid.symmetric else math.ceil(groups * grid.bits / 8)
        if rows * (groups * (nbytes + _SCALE_BYTES) + zeros) >= rows * columns * itemsize:
            return f"would not get smaller ({columns} columns)"
        return None
