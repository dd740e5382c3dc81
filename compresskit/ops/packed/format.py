"""What the codes of a weight stand for, whatever algorithm chose them and whatever target reads them; no torch.

A format is an object: grids hold it, cards record its name, and nothing else asks for the name. A new one is a file
with its levels, or what says where they are stored, a row in ``formats.py``, and the stage that offers it. Targets go
by its levels; one that has kernels or a layout for some formats keeps a table of them by format
(``ops/quantize/fast.py``, ``bnb_layouts.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BITS = (2, 3, 4, 8)
"""Bits of a code that stands for equal steps."""
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
"""Bits of a code that can be packed."""
_SCALE_BYTES = {"float16": 2, "float32": 4}
LEVEL_BYTES = 2
"""Of a stored level, which is float16."""
SUPER_BLOCK = 256
"""Columns of a super-block."""


@dataclass(frozen=True)
class TwoLevel:
    """Scales in two levels: a float for each super-block, and for each group in it a whole number of these.

    Attributes:
        groups: Groups of a super-block.
        bits: Of a group's whole number.
        minima: Each group has a minimum too, of as many bits and with a float of its own for each super-block: a weight
            is ``code · scale − minimum``, and all of these are at least 0. Else the whole numbers are signed, and a
            weight is ``(code − middle) · scale``.
    """

    groups: int
    bits: int
    minima: bool

    @property
    def group_size(self) -> int:
        """Columns of a group."""
        return SUPER_BLOCK // self.groups

    @property
    def kinds(self) -> int:
        """Numbers of a group: its scale, and its minimum where it has one."""
        return 2 if self.minima else 1


@dataclass(frozen=True)
class Format:
    """What codes stand for, times the scale of their group.

    That is equal steps from a zero point, the same with scales in two levels, the levels of one table, or those of
    tables that each weight has of its own.

    Attributes:
        name: As a card records it, and as ``inspect`` tells it.
        bits: Widths of a code that it has, of :data:`WIDTHS`; for equal steps of :data:`BITS`.
        levels: What each code stands for at scale 1, ascending, one of them 0; None for equal steps, where it is the
            code less the zero point of its group, and where levels are stored.
        tables: What of a weight has a table of levels of its own, float16 beside the codes: all of it, each row, or
            each group; None where none are stored.
        scales: torch's name of the dtype that scales have where it holds them: ``float16`` or ``float32``.
        groups_convolutions: Groups cut the rows of a convolution's weight too; else such a row has one scale.
        two_level: How scales are stored in two levels, for each of ``bits``; empty where each group has a float.
    """

    name: str
    bits: tuple[int, ...]
    levels: tuple[float, ...] | None = None
    tables: Literal["tensor", "row", "group"] | None = None
    scales: str = "float16"
    groups_convolutions: bool = True
    two_level: tuple[TwoLevel, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        known = BITS if self.equal_steps else WIDTHS
        if self.two_level and len(self.two_level) != len(self.bits):
            raise ValueError(f"format {self.name}: two levels for each number of bits")
        if not set(self.bits) <= set(known) or self.scales not in _SCALE_BYTES or (self.levels and self.tables):
            raise ValueError(f"there is no such format: {self}")
        if self.levels is not None:
            counted = all(len(self.levels) == 1 << bits for bits in self.bits)
            if not counted or sorted(set(self.levels)) != list(self.levels) or 0.0 not in self.levels:
                raise ValueError(f"format {self.name}: a level for each code, ascending, one of them 0")

    @property
    def equal_steps(self) -> bool:
        """True where a code less a zero point is what counts: only then can there be stored zero points."""
        return self.levels is None and self.tables is None and not self.two_level

    def two_level_of(self, bits: int) -> TwoLevel | None:
        """How the scales of codes of this width are stored in two levels; None where each group has a float."""
        return self.two_level[self.bits.index(bits)] if self.two_level else None

    def holds(self, shape: tuple[int, ...], bits: int) -> bool:
        """Whether a weight has a place: two levels take matrices whose rows are whole super-blocks."""
        return not self.two_level or (bits in self.bits and len(shape) == 2 and shape[1] % SUPER_BLOCK == 0)

    @property
    def scale_bytes(self) -> int:
        """Bytes of a scale as it usually is."""
        return _SCALE_BYTES[self.scales]

    def zero(self, bits: int) -> int | None:
        """The code that stands for 0 where no zero points are stored; None where stored levels or minima say it."""
        two_level = self.two_level_of(bits)
        if self.tables is not None or (two_level is not None and two_level.minima):
            return None
        return 1 << (bits - 1) if self.levels is None else self.levels.index(0.0)

    def dtype(self, bits: int) -> str:
        """What reports call the dtype of such codes: ``int4``, ``nf4``, ``palette4``, ``q4_k`` …"""
        if self.tables is not None:
            return f"palette{bits}"
        if self.two_level:
            return f"q{bits}_k"
        return f"int{bits}" if self.levels is None else self.name

    def stored_levels(self, rows: int, groups: int, bits: int) -> tuple[int, int, int] | None:
        """Shape of a weight's stored levels; axes that a table is for as a whole have size 1. None without tables."""
        if self.tables is None:
            return None
        return (1 if self.tables == "tensor" else rows), (groups if self.tables == "group" else 1), 1 << bits


LINEAR = Format("linear", BITS, groups_convolutions=False)
"""Equal steps: ``weight ≈ (code − zero) · scale``."""
