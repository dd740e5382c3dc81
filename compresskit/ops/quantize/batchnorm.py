"""Batch normalization after the weights have changed: its running statistics estimated anew, without labels.

"Data-Free Quantization Through Weight Equalization and Bias Correction" (Nagel et al., 2019) corrects the mean of what
a quantized layer gives; with data at hand, estimating mean and variance again corrects both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compresskit.ops.quantize.walk import Batch, Forward


@torch.no_grad()
def recalibrate(module: nn.Module, forward: Forward, batches: Sequence[Batch]) -> int:
    """Set running mean and variance of each batch normalization to those of the given batches; affine stays.

    Args:
        module: In eval mode, and left so. Only layers that keep running statistics are touched.
        forward: Calls the module with a batch.
        batches: All count alike; those of a single sample are left out, for they have no variance.

    Returns:
        The layers touched.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    usable = [batch for batch in batches if len(next(iter(batch.values()))) > 1]
    if not norms or not usable:
        return 0
    momentum = [norm.momentum for norm in norms]
    counted = [None if n.num_batches_tracked is None else n.num_batches_tracked.clone() for n in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        for batch in usable:
            forward(module, batch)
    finally:
        for norm, before, count in zip(norms, momentum, counted, strict=True):
            norm.momentum = before
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
            norm.eval()
    return len(norms)
