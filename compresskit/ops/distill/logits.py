"""Losses on class logits against a teacher's.

Each takes logits ``(…, classes)`` of any leading shape, and an optional mask ``(…)`` that is false at padded positions;
each returns a scalar, the mean over the positions that count.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(found: Tensor, wanted: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence of the teacher's classes from the student's, times ``temperature²``.

    "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015).

    Args:
        found: The student's logits, floating point ``(…, classes)``.
        wanted: The teacher's, same shape.
        temperature: Above 1, unlikely classes count more.
        mask: Boolean ``(…)``, true where a position counts; None is everywhere.

    Returns:
        A scalar of at least 0: the mean over the positions that count.
    """
    student = F.log_softmax(found / temperature, dim=-1)
    teacher = F.log_softmax(wanted / temperature, dim=-1)
    return masked_mean(divergence(teacher, student), mask) * temperature**2


def standardized(found: Tensor, wanted: Tensor, temperature: float = 2.0, mask: Tensor | None = None) -> Tensor:
    """The same, between logits that have mean 0 and standard deviation 1 in each sample.

    A small student need not reach the teacher's confidence, only the order and the relations of its classes. So the
    loss says nothing of how large logits are, and there have to be three classes or more: two standardized logits are
    always −1 and 1.

    "Logit Standardization in Knowledge Distillation" (Sun et al., 2024).

    Args:
        found: The student's logits, floating point ``(…, classes)``, classes ≥ 3.
        wanted: The teacher's, same shape.
        temperature: The base temperature, above 0.
        mask: Boolean ``(…)``, true where a position counts; None is everywhere.

    Returns:
        A scalar of at least 0: the mean over the positions that count.

    Raises:
        ValueError: Fewer than three classes.
    """
    if found.shape[-1] < 3:
        raise ValueError(f"three classes or more are needed, found {found.shape[-1]}")
    return soft_cross_entropy(_z_score(found), _z_score(wanted), temperature, mask)


def decoupled(
    found: Tensor,
    wanted: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Target class and other classes as two terms with weights of their own, times ``temperature²``.

    In the plain loss what the teacher knows of the other classes weighs the less the surer it is; here it doesn't.

    "Decoupled Knowledge Distillation" (Zhao et al., 2022); leaves out its warm-up over the first epochs.

    Args:
        found: The student's logits, floating point ``(…, classes)``, classes ≥ 2.
        wanted: The teacher's, same shape.
        labels: The target classes, int64 ``(…)``, from 0 on; any valid class where ``mask`` is false.
        temperature: Above 0.
        alpha: Weight of the target class against all others, at least 0.
        beta: Weight of the relations among the other classes, at least 0.
        mask: Boolean ``(…)``, true where a position counts; None is everywhere.

    Returns:
        A scalar of at least 0: the mean over the positions that count.
    """
    target = F.one_hot(labels, found.shape[-1]).bool()
    student, teacher = found / temperature, wanted / temperature
    among_all = divergence(_target_or_not(teacher, target), _target_or_not(student, target))
    # A finite stand-in for −∞, whose difference from itself would be NaN: it is far below any real logit's share.
    lowest = torch.finfo(student.dtype).min / 4
    others = [F.log_softmax(x.masked_fill(target, lowest), dim=-1) for x in (teacher, student)]
    among_others = (others[0].exp() * (others[0] - others[1])).masked_fill(target, 0).sum(-1)
    return masked_mean(alpha * among_all + beta * among_others, mask) * temperature**2


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Kullback-Leibler divergence of ``found`` from ``wanted``, both log-probabilities ``(…, classes)``: ``(…)``."""
    return F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` ``(…)`` where ``mask`` is true; 0 where it nowhere is."""
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def _z_score(logits: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 along the last axis; constant ones become zeros."""
    centred = logits - logits.mean(-1, keepdim=True)
    # Not the square root of a clamped variance: its gradient at constant logits would be without bound.
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-12)


def _target_or_not(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities of the target class and of all others together: ``(…, classes)`` to ``(…, 2)``."""
    lowest = torch.finfo(logits.dtype).min / 4
    parts = [logits.masked_fill(chosen, lowest).logsumexp(-1) for chosen in (~target, target)]
    return F.log_softmax(torch.stack(parts, -1), dim=-1)
