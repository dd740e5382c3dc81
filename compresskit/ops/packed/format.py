"""What the codes of a weight stand for, whatever algorithm chose them and whatever target reads them; no torch.

A format is an object: grids hold it, cards record its name, and nothing else asks for the name. A new one is a file
with its levels, a row in ``formats.py``, and the stage that offers it. Targets go by its levels; one that has kernels
or a layout for some formats keeps a table of them by format (``ops/quantize/fast.py``, ``bnb_layouts.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

BITS = (2, 3, 4, 8)
"""Bits of a code that can be packed."""
_SCALE_BYTES = {"float16": 2, "float32": 4}


@dataclass(frozen=True)
class Format:
    """What codes stand for: equal steps from a zero point, or the levels of a table; times the scale of their group.

    Attributes:
        name: As a card records it, and as ``inspect`` tells it.
        bits: Widths of a code that it has, of :data:`BITS`.
        levels: What each code stands for at scale 1, ascending, one of them 0; None for equal steps, where it is the
            code less the zero point of its group.
        scales: torch's name of the dtype that scales have where it holds them: ``float16`` or ``float32``.
        groups_convolutions: Groups cut the rows of a convolution's weight too; else such a row has one scale.
    """

    name: str
    bits: tuple[int, ...]
    levels: tuple[float, ...] | None = None
    scales: str = "float16"
    groups_convolutions: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not set(self.bits) <= set(BITS) or self.scales not in _SCALE_BYTES:
            raise ValueError(f"there is no such format: {self}")
        if self.levels is not None:
            counted = all(len(self.levels) == 1 << bits for bits in self.bits)
            if not counted or sorted(set(self.levels)) != list(self.levels) or 0.0 not in self.levels:
                raise ValueError(f"format {self.name}: a level for each code, ascending, one of them 0")

    @property
    def equal_steps(self) -> bool:
        """True where a code less a zero point is what counts: only then can there be stored zero points."""
        return self.levels is None

    @property
    def scale_bytes(self) -> int:
        """Bytes of a scale as it usually is."""
        return _SCALE_BYTES[self.scales]

    def zero(self, bits: int) -> int:
        """The code that stands for 0 where no zero points are stored."""
        return 1 << (bits - 1) if self.levels is None else self.levels.index(0.0)

    def dtype(self, bits: int) -> str:
        """What reports call the dtype of such codes: ``int4``, ``nf4`` …"""
        return f"int{bits}" if self.levels is None else self.name


LINEAR = Format("linear", BITS, groups_convolutions=False)
"""Equal steps: ``weight ≈ (code − zero) · scale``."""
