"""Least squares from sums alone, batch by batch: what a layer's weight and bias should be, or be moved by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import damped

_DAMPING, _MOST = 1e-4, 0.1
"""Share of the inputs' mean square that pulls a weight to where it was: the least, and the most where few positions
were seen for many columns."""
CAUTION = 0.05
"""Damping for as many positions as columns."""
_ROWS = 1 << 16


@dataclass
class NormalEquations:
    """Sums over positions, in float64, of what is needed to solve ``y ≈ W x + b``."""

    gram: Tensor | None = None
    cross: Tensor | None = None
    x: Tensor = field(default_factory=lambda: torch.zeros(()))
    y: Tensor = field(default_factory=lambda: torch.zeros(()))
    count: int = 0

    def add(self, rows: Tensor, target: Tensor) -> None:
        """Take in positions.

        Args:
            rows: ``(groups, positions, columns)``.
            target: ``(groups, positions, outputs of a group)``.
        """
        for start in range(0, rows.shape[1], _ROWS):
            part, aim = rows[:, start : start + _ROWS].float(), target[:, start : start + _ROWS].float()
            gram, cross = (part.mT @ part).double(), (aim.mT @ part).double()
            self.gram = gram if self.gram is None else self.gram.add_(gram)
            self.cross = cross if self.cross is None else self.cross.add_(cross)
            self.x = self.x + part.sum(1).double()
            self.y = self.y + aim.sum(1).double()
            self.count += part.shape[1]

    def solve(
        self, start: Tensor | None = None, *, bias: bool = True, caution: float = CAUTION
    ) -> tuple[Tensor, Tensor]:
        """The weight ``(groups, outputs of a group, columns)`` and bias ``(groups, outputs of a group)``, float64.

        Args:
            start: Where damping pulls the weight to, same shape; 0 without.
            bias: Without one the bias is 0.
            caution: Damping, as a share of the inputs' mean square, for as many positions as columns.

        Raises:
            ValueError: Nothing was taken in.
        """
        if self.gram is None or self.cross is None:
            raise ValueError("no position was seen")
        gram, cross, x, y = (t / self.count for t in (self.gram, self.cross, self.x, self.y))
        if bias:  # with a bias only what differs from the mean has to be fitted
            gram = gram - x.unsqueeze(2) * x.unsqueeze(1)
            cross = cross - y.unsqueeze(2) * x.unsqueeze(1)
        begin = torch.zeros_like(cross) if start is None else start.double()
        damping = min(_MOST, max(_DAMPING, caution * gram.shape[1] / self.count))
        weight = begin + torch.linalg.solve(damped(gram, damping), (cross - begin @ gram).mT).mT
        level = y - (weight @ x.unsqueeze(2)).squeeze(2) if bias else torch.zeros_like(y)
        return weight, level
