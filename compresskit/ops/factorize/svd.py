"""Two matrices in the place of one: the truncated singular value decomposition, in any metric."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from compresskit.ops.factorize.metric import Decomposition, Metric


class Svd:
    """A Linear layer or a 1×1 convolution taken apart; the best there is for its rank (Eckart & Young, 1936).

    Args:
        weight: ``(outputs, inputs, …)``, its further axes of size 1.
        metric: What counts.
    """

    def __init__(self, weight: Tensor, metric: Metric) -> None:
        matrix = weight.detach().double().flatten(1)
        outer, inner = metric.roots(*matrix.shape)
        self.found = Decomposition.of(matrix, outer, inner)
        self.total = float(self.found.energy.sum())

    def lost(self, ranks: Sequence[int]) -> float:
        """Squared error of a rank, in the metric."""
        return self.found.tail(ranks[0])

    def factors(self, ranks: Sequence[int]) -> list[Tensor]:
        """Weights of the two layers."""
        left, right = self.found.pair(ranks[0])
        return [right, left]
