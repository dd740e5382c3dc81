"""Losses against a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(found: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the teacher's classes from the student's, times ``temperature²``.

    "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015).

    Args:
        found: The student's logits, ``(…, classes)``.
        wanted: The teacher's, same shape.
        temperature: Above 1, unlikely classes count more.

    Returns:
        A scalar: the mean over all but the last axis.
    """
    student = F.log_softmax(found.flatten(0, -2) / temperature, dim=-1)
    teacher = F.log_softmax(wanted.flatten(0, -2) / temperature, dim=-1)
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2
