"""What algorithms do with the second moments of a layer's inputs: factor them, and solve with them."""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.errors import InputError
from compresskit.ops.calibration.moments import Moments

_MOST_DAMPING = 1e2
_DAMPING = (1e-3, 0.1)
_TRUST = 50.0
"""Positions a column for half of the least-squares shift; neighbouring tokens are much alike, hence so many."""


def flat_weight(weight: Tensor, moments: Moments) -> Tensor:
    """The weight as the moments see it: float32 ``(groups of a convolution, outputs of a group, columns)``.

    Raises:
        InputError: It holds NaN or Inf, or the moments do, or they are of another layer.
    """
    groups, columns, _ = moments.gram.shape
    if weight[0].numel() != columns or weight.shape[0] % groups:
        raise InputError(f"moments of {columns} columns in {groups} groups don't fit a weight {tuple(weight.shape)}")
    if not weight.isfinite().all():
        raise InputError("the weight holds NaN or Inf", "leave its layer out with `exclude`")
    if not moments.gram.isfinite().all():
        raise InputError("its inputs hold NaN or Inf on the calibration data", "look for the sample that causes it")
    return weight.detach().float().reshape(groups, -1, columns)


def damping_of(moments: Moments, damping: float | None) -> float:
    """The damping given, or one that fits how much was seen: what few positions say of many columns is mostly noise."""
    if damping is not None:
        return damping
    low, high = _DAMPING
    return min(high, max(low, 0.5 * moments.gram.shape[1] / moments.count))


def damped(gram: Tensor, damping: float) -> Tensor:
    """The gram ``(groups, columns, columns)`` with a fraction of its mean diagonal added to the diagonal.

    Columns that were never fed get a diagonal of that mean: they stay apart from the others.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    level = diagonal.mean(1, keepdim=True)
    level = torch.where(level > 0, level, 1.0)
    added: Tensor = gram + torch.diag_embed(torch.where(diagonal > 0, damping * level, level))
    return added


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor ``U`` of the inverse of the damped gram: ``inverse = Uᵀ U``.

    Args:
        gram: float32 ``(groups, columns, columns)``.
        damping: See :func:`damped`; grows tenfold while the factoring fails.

    Raises:
        InputError: It can't be factored: no matrix of second moments is like that.
    """
    while damping <= _MOST_DAMPING:
        upper: Tensor
        lower, failed = torch.linalg.cholesky_ex(damped(gram, damping))
        if not failed.any():
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any() and upper.isfinite().all():
                return upper
        damping = max(10 * damping, 1e-4)
    raise InputError("the second moments of its inputs can't be factored", "leave the layer out with `exclude`")


def corrected(weight: Tensor, moments: Moments, share: float, damping: float | None = None) -> Tensor:
    """The weight that gives on the quantized model's inputs, in least squares, what the original gave on its own.

    "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration" (Li et al., 2025) aims at the same
    target column by column; here the weight moves to the least-squares solution at once. The fewer positions were
    seen for each column, the less of that solution is true of other data, and the shorter the way taken.

    Args:
        weight: ``(outputs, …)``.
        moments: With ``cross``; without it the weight comes back as it is.
        share: How far to go with unlimited data, 0 to 1.
        damping: See :func:`damping_of`.
    """
    if moments.cross is None or not share:
        return weight
    target = flat_weight(weight, moments)
    shift = torch.linalg.solve(damped(moments.gram, damping_of(moments, damping)), (target @ moments.cross).mT).mT
    share /= 1 + _TRUST * moments.gram.shape[1] / moments.count
    moved: Tensor = target + share * shift
    return moved.reshape(weight.shape).to(weight.dtype)
