"""CP: a convolution as a sum of outer products, one vector for each of its four axes.

"Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition" (Lebedev et al., 2015), by tensorly's
alternating least squares, in the metric of the data along the channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from compresskit.errors import missing_extra
from compresskit.ops.factorize.metric import Metric, Root
from compresskit.ops.factorize.tucker import channel_moments

_ROUNDS, _TOLERANCE = 200, 1e-7


class Cp:
    """A convolution taken apart along all of its axes.

    Args:
        weight: ``(outputs, inputs, height, width)``.
        metric: What counts.
        seed: Of the vectors that fill up a rank beyond an axis' size.

    Raises:
        MachineError: tensorly isn't installed.
    """

    def __init__(self, weight: Tensor, metric: Metric, seed: int = 0) -> None:
        try:
            import tensorly  # noqa: F401
        except ImportError:
            raise missing_extra("tensorly", "factorize") from None
        whole = weight.detach().double()
        outputs, inputs = whole.shape[:2]
        self._outer = Root.of(metric.outer, outputs, 1e-3)
        self._inner = Root.of(channel_moments(metric.inner, inputs), inputs, 1e-4)
        self._scaled = torch.einsum("po,oihw,iq->pqhw", self._outer.forth, whole, self._inner.forth)
        self._seed = seed
        self._known: dict[int, list[Tensor]] = {}
        self.total = float(self._scaled.square().sum())

    def lost(self, ranks: Sequence[int]) -> float:
        """Squared error of a rank, in the metric."""
        found = torch.einsum("or,ir,hr,wr->oihw", *self._vectors(ranks[0]))
        return float((found - self._scaled).square().sum())

    def factors(self, ranks: Sequence[int]) -> list[Tensor]:
        """Weights of the four layers."""
        outputs, inputs, down, across = self._vectors(ranks[0])
        return [(self._inner.back @ inputs).T, down.T, across.T, self._outer.back @ outputs]

    def _vectors(self, rank: int) -> list[Tensor]:
        """One matrix an axis, a column for each term."""
        if rank not in self._known:
            import numpy as np
            from tensorly.decomposition import parafac

            with warnings.catch_warnings():
                # A rank beyond the size of an axis is what is wanted; the start is filled up at random.
                warnings.filterwarnings("ignore", "Trying to compute SVD")
                weights, factors = parafac(
                    self._scaled.numpy(), rank, n_iter_max=_ROUNDS, init="svd", tol=_TOLERANCE,
                    random_state=np.random.RandomState(self._seed),
                )  # fmt: skip
            vectors = [torch.from_numpy(np.array(f)) for f in factors]
            vectors[0] = vectors[0] * torch.from_numpy(np.array(weights))
            self._known[rank] = vectors
        return self._known[rank]
