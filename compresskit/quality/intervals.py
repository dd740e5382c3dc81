"""95 % intervals of the figures, and of differences between two models on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from compresskit.benchmark.stats import student_quantile

Interval = tuple[float, float]
Z = 1.959963984540054


def wilson(hits: float, n: int) -> Interval:
    """Of a proportion ``hits / n`` (Wilson 1927); right for few samples and near 0 and 1."""
    p, z2 = hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_proportions(gained: int, lost: int, n: int) -> Interval:
    """Of the change of a proportion on the same samples (Agresti and Min 2005: half a sample added to each cell).

    Args:
        gained: Samples that are hits only afterwards.
        lost: Samples that were hits only before.
        n: All samples.
    """
    total, b, c = n + 2, gained + 0.5, lost + 0.5
    change = (b - c) / total
    half = Z * math.sqrt((b + c) - (b - c) ** 2 / total) / total
    return change - half, change + half


def mean(values: np.ndarray) -> Interval | None:
    """Of the mean of ``values`` ``(n,)``; None below 5 samples, where the spread says too little."""
    n = len(values)
    if n < 5:
        return None
    half = student_quantile(0.975, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    middle = float(values.mean())
    return middle - half, middle + half


def ratio_residuals(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What each sample adds to ``sums.sum() / counts.sum()``, linearized (delta method); mean 0, shape ``(n,)``."""
    ratio = sums.sum() / counts.sum()
    residuals: np.ndarray = (sums - ratio * counts) / counts.mean()
    return residuals


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, rounds: int = 1000) -> Interval | None:
    """Percentile bootstrap of a statistic of sample indices ``(n,)``; seeded, so the same data gives the same interval.

    Returns None below 5 samples, or when a resample leaves the statistic undefined in more than 1 of 20 rounds.
    """
    if n < 5:
        return None
    rng = np.random.default_rng(0)
    found = np.array([statistic(rng.integers(0, n, n)) for _ in range(rounds)])
    found = found[np.isfinite(found)]
    if len(found) < 0.95 * rounds:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
