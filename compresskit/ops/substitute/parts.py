"""Cheaper layers in the place of one: whatever spreads an input out, and a pointwise layer that is fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Parts(nn.Module, ABC):
    """Layers in the place of a convolution or a Linear layer.

    Attributes:
        point: The last of them, a 1×1 convolution or a Linear layer.
    """

    point: Any

    @abstractmethod
    def spread(self, x: Tensor) -> Tensor:
        """What the last layer is given."""

    def forward(self, x: Tensor) -> Tensor:
        """The output of the layer, about."""
        out: Tensor = self.point(self.spread(x))
        return out

    @abstractmethod
    def fill(self, like: Any, columns: Tensor | None = None) -> Parts:
        """Take the nearest weights to those of a layer.

        Args:
            like: The layer.
            columns: Second moments of its inputs, ``(columns, columns)`` as its flattened weight has them; None
                counts all columns alike.
        """
