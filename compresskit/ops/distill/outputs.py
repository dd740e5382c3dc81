"""Losses on outputs that are no class logits: embeddings, hidden states, regressions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compresskit.ops.distill.logits import masked_mean


def relative_distance(found: Tensor, wanted: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared distance to the teacher's values, in units of their own spread, so that 1 is the error of a constant.

    Args:
        found: The student's values, floating point ``(n, …, width)``.
        wanted: The teacher's, same shape.
        mask: Boolean ``(n, …)``, true where a position counts; None is everywhere.

    Returns:
        A scalar of at least 0.
    """
    squares = masked_mean((found - wanted).square().mean(-1), mask)
    with torch.no_grad():
        rows = wanted.flatten(0, -2) if mask is None else wanted[mask]
        spread = (rows - rows.mean(0)).square().mean() if len(rows) > 1 else rows.square().mean()
    return squares / spread.clamp_min(1e-12)


def angular_distance(found: Tensor, wanted: Tensor, mask: Tensor | None = None) -> Tensor:
    """One less the cosine of student and teacher along the last axis: a scalar from 0 to 2; arguments as above."""
    return masked_mean(1 - F.cosine_similarity(found, wanted, dim=-1), mask)


def pooled(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the positions that count: ``(n, L, width)`` and boolean ``(n, L)`` to ``(n, width)``."""
    if mask is None:
        return hidden.mean(1)
    kept = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1).clamp_min(1)


def embedding_distance(found: Tensor, wanted: Tensor, mask: Tensor | None = None) -> Tensor:
    """What a user of embeddings sees of the difference: the values, and the angle of the pooled vectors.

    Reimers & Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation" (2020) take
    the squared distance alone; the angle is added because embeddings are compared by it.

    Args:
        found: The student's hidden states ``(n, L, width)``, or embeddings ``(n, width)``; floating point.
        wanted: The teacher's, same shape.
        mask: Boolean ``(n, L)`` for hidden states, true at tokens; None is everywhere.

    Returns:
        A scalar of at least 0.
    """
    distance = relative_distance(found, wanted, mask)
    if found.dim() == 3:
        return distance + angular_distance(pooled(found, mask), pooled(wanted, mask))
    return distance + angular_distance(found, wanted)
