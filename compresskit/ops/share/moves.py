"""Moves of a picture: flips and quarter turns, and the groups that they make."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Move:
    """A flip or a turn of the last two axes: first the axes change places, then each may be reversed.

    The exported graph has plain operators only: Transpose, and Slice with a step of -1.

    Attributes:
        name: In words.
        transposed: Height and width change places; the result has the same shape for square pictures alone.
        down: The vertical axis is reversed.
        across: The horizontal axis is reversed.
    """

    name: str
    transposed: bool = False
    down: bool = False
    across: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """The picture ``(…, height, width)``, moved."""
        return self._flipped(x.transpose(-1, -2) if self.transposed else x)

    def undo(self, x: Tensor) -> Tensor:
        """The inverse."""
        x = self._flipped(x)
        return x.transpose(-1, -2) if self.transposed else x

    def _flipped(self, x: Tensor) -> Tensor:
        axes = [axis for axis, turned in ((-2, self.down), (-1, self.across)) if turned]
        return x.flip(axes) if axes else x


STAY = Move("nothing")
MIRROR, UPSIDE_DOWN = Move("flip left-right", across=True), Move("flip up-down", down=True)
HALF = Move("half turn", down=True, across=True)
QUARTER, BACK = (
    Move("quarter turn", transposed=True, down=True),
    Move("quarter turn back", transposed=True, across=True),
)
DIAGONALS = (
    Move("flip along the diagonal", transposed=True),
    Move("flip along the other diagonal", transposed=True, down=True, across=True),
)
GROUPS: dict[str, tuple[Move, ...]] = {
    "flip": (STAY, MIRROR),
    "c2": (STAY, HALF),
    "d2": (STAY, MIRROR, UPSIDE_DOWN, HALF),
    "c4": (STAY, QUARTER, HALF, BACK),
    "d4": (STAY, MIRROR, UPSIDE_DOWN, HALF, QUARTER, BACK, *DIAGONALS),
}
"""Moves that are closed under one after the other, the one that changes nothing first."""
