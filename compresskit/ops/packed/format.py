"""What the codes of a weight stand for, whatever algorithm chose them and whatever target reads them; no torch.

A format is an object: grids hold it, cards record its name, and nothing else asks for the name. A new one is a file
with its levels, or what says where they are stored, a row in ``formats.py``, and the stage that offers it. Targets go
by its levels; one that has kernels or a layout for some formats keeps a table of them by format
(``ops/quantize/fast.py``, ``bnb_layouts.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

BITS = (2, 3, 4, 8)
"""Bits of a code that stands for equal steps."""
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
"""Bits of a code that can be packed."""
_SCALE_BYTES = {"float16": 2, "float32": 4}
_LEVEL_BYTES = 2


@dataclass(frozen=True)
class Format:
    """What codes stand for, times the scale of their group.

    That is equal steps from a zero point, the levels of one table, or those of tables that each weight has of its own.

    Attributes:
        name: As a card records it, and as ``inspect`` tells it.
        bits: Widths of a code that it has, of :data:`WIDTHS`; for equal steps of :data:`BITS`.
        levels: What each code stands for at scale 1, ascending, one of them 0; None for equal steps, where it is the
            code less the zero point of its group, and where levels are stored.
        tables: What of a weight has a table of levels of its own, float16 beside the codes: all of it, each row, or
            each group; None where none are stored.
        scales: torch's name of the dtype that scales have where it holds them: ``float16`` or ``float32``.
        groups_convolutions: Groups cut the rows of a convolution's weight too; else such a row has one scale.
    """

    name: str
    bits: tuple[int, ...]
    levels: tuple[float, ...] | None = None
    tables: Literal["tensor", "row", "group"] | None = None
    scales: str = "float16"
    groups_convolutions: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        known = BITS if self.equal_steps else WIDTHS
        if not set(self.bits) <= set(known) or self.scales not in _SCALE_BYTES or (self.levels and self.tables):
            raise ValueError(f"there is no such format: {self}")
        if self.levels is not None:
            counted = all(len(self.levels) == 1 << bits for bits in self.bits)
            if not counted or sorted(set(self.levels)) != list(self.levels) or 0.0 not in self.levels:
                raise ValueError(f"format {self.name}: a level for each code, ascending, one of them 0")

    @property
    def equal_steps(self) -> bool:
        """True where a code less a zero point is what counts: only then can there be stored zero points."""
        return self.levels is None and self.tables is None

    @property
    def scale_bytes(self) -> int:
        """Bytes of a scale as it usually is."""
        return _SCALE_BYTES[self.scales]

    def zero(self, bits: int) -> int | None:
        """The code that stands for 0 where no zero points are stored; None where stored levels say it."""
        if self.tables is not None:
            return None
        return 1 << (bits - 1) if self.levels is None else self.levels.index(0.0)

    def dtype(self, bits: int) -> str:
        """What reports call the dtype of such codes: ``int4``, ``nf4``, ``palette4`` …"""
        if self.tables is not None:
            return f"palette{bits}"
        return f"int{bits}" if self.levels is None else self.name

    def stored_levels(self, rows: int, groups: int, bits: int) -> tuple[int, int, int] | None:
        """Shape of a weight's stored levels; axes that a table is for as a whole have size 1. None without tables."""
        if self.tables is None:
            return None
        return (1 if self.tables == "tensor" else rows), (groups if self.tables == "group" else 1), 1 << bits

    def level_bytes(self, rows: int, groups: int, bits: int) -> int:
        """Bytes of a weight's stored levels."""
        return _LEVEL_BYTES * math.prod(self.stored_levels(rows, groups, bits) or (0,))


LINEAR = Format("linear", BITS, groups_convolutions=False)
"""Equal steps: ``weight ≈ (code − zero) · scale``."""
