"""Sentence embeddings: pooling, and rank correlation with ties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from compresskit.usage import Pooling


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


def pooled(hidden: np.ndarray, mask: np.ndarray, modes: Sequence[Pooling], unit: bool) -> np.ndarray:
    """One vector a text, as sentence-transformers makes it.

    Args:
        hidden: ``(n, L, width)``, a vector a token.
        mask: ``(n, L)``, 0 for padding.
        modes: The vectors of several modes are joined, in their order.
        unit: Scale to length 1.

    Returns:
        ``(n, len(modes) · width)`` ``float32``.
    """
    real, rows = mask != 0, np.arange(len(hidden))
    first, length = real.argmax(axis=1), hidden.shape[1]
    counts = np.maximum(real.sum(axis=1, keepdims=True), 1)

    def one(mode: Pooling) -> Any:
        if mode == "cls":
            return hidden[rows, first]
        if mode == "lasttoken":
            return hidden[rows, length - 1 - real[:, ::-1].argmax(axis=1)]
        if mode == "max":
            return np.where(real[:, :, None], hidden, np.finfo(np.float32).min).max(axis=1)
        if mode == "weightedmean":
            weights = real * (np.arange(1, length + 1) - first[:, None])
            return np.einsum("nlw,nl->nw", hidden, weights) / np.maximum(weights.sum(axis=1), 1)[:, None]
        return pool(hidden, mask) * (np.sqrt(counts) if mode == "mean_sqrt_len_tokens" else 1)

    found = np.concatenate([one(mode) for mode in modes], axis=1)
    if unit:
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return np.asarray(found, np.float32)


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
