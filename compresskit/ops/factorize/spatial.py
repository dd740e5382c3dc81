"""A k×1 and a 1×k convolution in the place of one of k×k.

"Speeding up Convolutional Neural Networks with Low Rank Expansions" (Jaderberg et al., 2014), their scheme 2, in closed
form, with the metric of the data in the place of plain squares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compresskit.ops.factorize.metric import Decomposition, Metric, Root
from compresskit.ops.factorize.tucker import channel_moments


class Spatial:
    """A convolution taken apart along the axes of its window.

    Args:
        weight: ``(outputs, inputs, height, width)``.
        metric: What counts. How the columns of a window lie side by side is averaged over.
    """

    def __init__(self, weight: Tensor, metric: Metric) -> None:
        whole = weight.detach().double()
        self._shape = outputs, inputs, height, width = whole.shape
        outer = Root.of(metric.outer, outputs, 1e-3)
        inner = Root.of(channel_moments(metric.inner, inputs, height), inputs * height, 1e-4)
        rows = whole.permute(3, 0, 1, 2).reshape(width, outputs, -1)
        eye = torch.eye(width, dtype=torch.float64)
        tall = Root(torch.kron(eye, outer.forth), torch.kron(eye, outer.back))
        self._found = Decomposition.of(rows.flatten(0, 1), tall, inner)
        self.total = float(self._found.energy.sum())

    def lost(self, ranks: Sequence[int]) -> float:
        """Squared error of a rank, in the metric."""
        return self._found.tail(ranks[0])

    def factors(self, ranks: Sequence[int]) -> list[Tensor]:
        """Weights of the two layers."""
        outputs, inputs, height, width = self._shape
        left, right = self._found.pair(ranks[0])
        down = right.reshape(-1, inputs, height, 1)
        across = left.reshape(width, outputs, -1).permute(1, 2, 0).unsqueeze(2)
        return [down, across]
