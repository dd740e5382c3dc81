"""Tucker-2: a convolution with fewer channels between two 1×1 convolutions.

"Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications" (Kim et al., 2016), with
the metric of the data in the place of plain squares, and ranks by measured loss in the place of variational Bayes. With
all input channels kept it is the decomposition of "Accelerating Very Deep Convolutional Networks for Classification and
Detection" (Zhang et al., 2016) without their nonlinear refinement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compresskit.ops.factorize.metric import Decomposition, Metric, Root


class Tucker:
    """A convolution taken apart along its input and output channels.

    Args:
        weight: ``(outputs, inputs, …)``.
        metric: What counts; columns are ``(inputs, …)`` flattened.
    """

    def __init__(self, weight: Tensor, metric: Metric) -> None:
        self._weight = weight.detach().double().flatten(2)
        outputs, inputs, window = self._weight.shape
        self._outer, self._inner = metric.roots(outputs, inputs * window)
        self._channels = Root.of(channel_moments(metric.inner, inputs), inputs, 0.0)
        flat = self._weight.permute(0, 2, 1)
        rows = torch.einsum("po,owi->pwi", self._outer.forth, flat).reshape(-1, inputs)
        self._into = Decomposition.of(rows, Root.of(None, len(rows), 0.0), self._channels)
        self._out = Decomposition.of(self._weight.flatten(1), self._outer, self._inner)
        self.total = float(self._out.energy.sum())

    def lost(self, ranks: Sequence[int]) -> float:
        """Squared error of both ranks, in the metric: an estimate, exact where one of them is full."""
        into, out = self._into.share(ranks[0]), self._out.share(ranks[1])
        return self.total * min(1.0, into + out)

    def factors(self, ranks: Sequence[int]) -> list[Tensor]:
        """Weights of the layers; a 1×1 of full rank is left out."""
        outputs, inputs, window = self._weight.shape
        into, out = ranks
        before: list[Tensor] = []
        weight = wide = self._weight
        back = torch.eye(inputs, dtype=torch.float64)
        if into < inputs:
            narrow = self._into.right[:into]
            back = self._channels.forth @ (narrow @ self._channels.forth).T
            before = [narrow]
            weight = torch.einsum("oiw,ir->orw", self._weight, back)
            wide = torch.einsum("orw,ri->oiw", weight, narrow)
        if out == outputs:
            return [*before, weight]
        left, right = Decomposition.of(wide.flatten(1), self._outer, self._inner).pair(out)
        core = torch.einsum("oiw,ir->orw", right.reshape(out, inputs, window), back)
        return [*before, core, left]


def channel_moments(inner: Tensor | None, channels: int, keep: int = 1) -> Tensor | None:
    """Moments of a window's columns averaged over its places: ``(channels · keep, channels · keep)``.

    Args:
        inner: ``(channels · window, channels · window)``.
        channels: Input channels.
        keep: Size of the first axis of the window, where that is not to be averaged over.
    """
    if inner is None:
        return None
    places = inner.shape[0] // channels // keep
    whole = inner.reshape(channels * keep, places, channels * keep, places)
    return whole.diagonal(dim1=1, dim2=3).mean(-1)
