"""The largest rank at which a layer's factors still have fewer weights than the layer; no torch."""

from __future__ import annotations

import math

MULTIPLE = 8
"""Ranks are multiples of this, as ``factorize`` has them."""


def break_even(shape: tuple[int, ...], multiple: int = MULTIPLE) -> dict[str, int]:
    """Ranks below which factorizing saves weights, by the way a layer is taken apart.

    Args:
        shape: Of the weight: ``(outputs, inputs)`` of a Linear layer, ``(outputs, inputs, window …)`` of a convolution
            that isn't grouped.
        multiple: Ranks are rounded down to a multiple of this.

    Returns:
        ``svd`` for two matrices, ``r · (m + n) < m · n``; ``spatial`` for k×1 and 1×k; ``tucker`` with the same rank on
        both sides. 0 where no such rank saves anything.
    """
    outputs, inputs, *window = shape
    size = math.prod(window)
    weights = outputs * inputs * size
    if size == 1:
        return {"svd": _linear(weights, outputs + inputs, min(outputs, inputs), multiple)}
    found = {}
    if len(window) == 2:
        pieces = inputs * window[0] + outputs * window[1]
        found["spatial"] = _linear(weights, pieces, min(inputs * window[0], outputs * window[1]), multiple)
    # r² · size + r · (outputs + inputs) < weights, and below both sides' channels.
    edge = outputs + inputs
    root = (math.sqrt(edge * edge + 4 * size * weights) - edge) / (2 * size)
    below = min(math.ceil(root) - 1, min(outputs, inputs))
    while below > 0 and below * (below * size + edge) >= weights:
        below -= 1
    found["tucker"] = below // multiple * multiple
    return found


def _linear(weights: int, each: int, full: int, multiple: int) -> int:
    """The largest multiple ``r`` with ``r · each < weights``, below the full rank."""
    return min((weights - 1) // each, full - 1) // multiple * multiple if weights else 0
