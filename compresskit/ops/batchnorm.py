"""Batch normalization after the weights have changed: its running statistics re-estimated, without labels.

"Data-Free Quantization Through Weight Equalization and Bias Correction" (Nagel et al., 2019) corrects the mean of what
a quantized layer gives; with data at hand, estimating mean and variance again corrects both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
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
    saved = [_Saved(norm) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        for batch in usable:
            forward(module, batch)
    finally:
        reached = sum([before.settle() for before in saved])
    return reached


class _Saved:
    """A normalization as it was before its statistics are estimated."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm, self.momentum = norm, norm.momentum
        self.buffers = {name: tensor.clone() for name, tensor in norm.named_buffers(recurse=False)}

    def settle(self) -> bool:
        """Put back all but the new statistics, and these too where no batch came; returns whether one did."""
        norm = self.norm
        reached = norm.num_batches_tracked is not None and bool(norm.num_batches_tracked > 0)
        for name, tensor in self.buffers.items():
            if not reached or name == "num_batches_tracked":
                norm.get_buffer(name).copy_(tensor)
        norm.momentum = self.momentum
        norm.eval()
        return reached
