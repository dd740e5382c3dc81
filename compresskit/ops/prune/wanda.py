"""Wanda: what goes is small in magnitude times the norm of its input, output by output; what stays is not changed.

"A Simple and Effective Pruning Approach for Large Language Models" (Sun et al., 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import flat_weight
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.prune.masks import Pattern, kept


@torch.no_grad()
def prune_wanda(weight: Tensor, pattern: Pattern, moments: Moments) -> Tensor:
    """The weight with zeros.

    Args:
        weight: ``(outputs, inputs, …)``; the outputs of a convolution lie group after group.
        pattern: Which share; without groups every output loses the same number of weights.
        moments: Of the layer's inputs.

    Raises:
        InputError: The weight or the moments hold NaN or Inf.
    """
    norms = moments.gram.diagonal(dim1=1, dim2=2).sqrt()
    scores = (flat_weight(weight, moments).abs() * norms.unsqueeze(1)).reshape(weight.shape)
    return weight * kept(scores, pattern, by_row=True)
