"""Magnitude: the smallest weights go, without a look at data.

"Learning both Weights and Connections for Efficient Neural Networks" (Han et al., 2015), without its training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compresskit.ops.prune.masks import Pattern, kept, lowest, oriented


@torch.no_grad()
def prune_magnitude(weight: Tensor, pattern: Pattern, *, by_row: bool = False) -> Tensor:
    """A weight ``(outputs, inputs, …)`` with its smallest values set to zero; ``by_row``: as many of each output."""
    return weight * kept(weight.abs(), pattern, by_row=by_row)


@torch.no_grad()
def prune_together(layers: Mapping[str, nn.Module], sparsity: float) -> None:
    """Set the smallest weights of all layers together to zero, in place: large layers of small weights lose more.

    Args:
        layers: With a ``weight`` each.
        sparsity: Share of all their weights, 0 to below 1.
    """
    views = [oriented(layer) for layer in layers.values()]
    scores = torch.cat([view.abs().flatten().float() for view in views])
    stays = lowest(scores.unsqueeze(0), round(sparsity * len(scores)))[0].logical_not()
    start = 0
    for view in views:
        view.mul_(stays[start : start + view.numel()].reshape(view.shape))
        start += view.numel()
