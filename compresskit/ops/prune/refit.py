"""The best values of the weights that stay, once it is settled which do: least squares by conjugate gradients.

As the second step of "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models" (Meng
et al., 2024): all outputs at once, each with its own mask, which would be one system to solve for each of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import damped, damping_of, flat_weight
from compresskit.ops.calibration.moments import Moments


@torch.no_grad()
def refit(weight: Tensor, target: Tensor, moments: Moments, *, rounds: int, damping: float | None = None) -> Tensor:
    """Move the weights that aren't zero to where the layer's output comes closest to that of ``target``.

    Args:
        weight: ``(outputs, inputs, …)`` with zeros, which stay.
        target: The weight whose output is aimed at; same shape.
        moments: Of the layer's inputs.
        rounds: Steps, each lowers the error; 0 gives the weight back.
        damping: See :func:`~compresskit.ops.calibration.gram.damping_of`.

    Raises:
        InputError: A weight or the moments hold NaN or Inf.
    """
    now, aim = flat_weight(weight, moments), flat_weight(target, moments)
    mask = now != 0
    gram = damped(moments.gram, damping_of(moments, damping))
    level = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    left = (aim - now) @ gram * mask
    ready = left / level
    way, strength = ready, (left * ready).sum(2, keepdim=True)
    for _ in range(rounds):
        pushed = way @ gram * mask
        length = _over(strength, (way * pushed).sum(2, keepdim=True))
        now = now + length * way
        left = left - length * pushed
        ready = left / level
        before, strength = strength, (left * ready).sum(2, keepdim=True)
        way = ready + _over(strength, before) * way
    return now.reshape(weight.shape).to(weight.dtype)


def _over(value: Tensor, by: Tensor) -> Tensor:
    """``value / by``, 0 where an output is there already."""
    return torch.where(by > 0, value / by.clamp(min=torch.finfo(by.dtype).tiny), 0.0)
