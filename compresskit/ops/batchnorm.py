"""Batch normalization after the weights have changed: its running statistics estimated anew, without labels.

"Data-Free Quantization Through Weight Equalization and Bias Correction" (Nagel et al., 2019) corrects the mean of what
a quantized layer gives; with data at hand, estimating mean and variance again corrects both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compresskit.ops.calibration.activation_stream import Batch, Forward


@torch.no_grad()
def recalibrate(module: nn.Module, forward: Forward, batches: Sequence[Batch]) -> int:
    """Set running mean and variance of each batch normalization to those of the given batches; affine stays.

    Args:
        module: In eval mode, and left so. Only layers that keep running statistics are touched.
        forward: Calls the module with a batch.
        batches: All count alike; those of a single sample are left out, for they have no variance.

    Returns:
        The layers touched; one that no batch reaches keeps its statistics and isn't counted.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    usable = [batch for batch in batches if len(next(iter(batch.values()))) > 1]
    if not norms or not usable:
        return 0
    momentum = [norm.momentum for norm in norms]
    statistics = [[t.clone() for t in _statistics(norm)] for norm in norms]
    reached = 0
    counted = [None if n.num_batches_tracked is None else n.num_batches_tracked.clone() for n in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        for batch in usable:
            forward(module, batch)
    finally:
        for norm, before, count, old in zip(norms, momentum, counted, statistics, strict=True):
            norm.momentum = before
            if norm.num_batches_tracked is not None and norm.num_batches_tracked > 0:
                reached += 1
            else:
                for now, value in zip(_statistics(norm), old, strict=True):
                    now.copy_(value)
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
            norm.eval()
    return reached


def _statistics(norm: _BatchNorm) -> list[Tensor]:
    return [t for t in (norm.running_mean, norm.running_var) if t is not None]
