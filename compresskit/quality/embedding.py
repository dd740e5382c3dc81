"""Sentence embeddings: pooling, and rank correlation with ties."""

from __future__ import annotations

import math

import numpy as np


def pool(hidden: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Mean over the real tokens.

    Args:
        hidden: ``(n, L, width)``, or ``(n, width)`` that is pooled already.
        mask: ``(n, L)``, 0 for padding; None counts every token.

    Returns:
        ``(n, width)`` ``float64``.
    """
    if hidden.ndim == 2:
        return np.asarray(hidden, np.float64)
    if mask is None or mask.shape != hidden.shape[:2]:
        return np.asarray(hidden.mean(axis=1, dtype=np.float64))
    hidden = hidden.astype(np.float32) if hidden.dtype == np.float16 else hidden
    weights = (mask != 0).astype(hidden.dtype)
    summed = np.einsum("nlw,nl->nw", hidden, weights).astype(np.float64)
    return np.asarray(summed / np.maximum(weights.sum(axis=1, dtype=np.float64), 1)[:, None])


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ``(n,)``; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's coefficient of ``(n,)`` and ``(n,)``, -1 to 1; NaN when either has but one value."""
    x, y = average_ranks(a), average_ranks(b)
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm > 0 else math.nan
