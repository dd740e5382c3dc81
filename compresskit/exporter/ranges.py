"""How an activation's 8-bit range follows from the values seen in calibration: min-max, percentile, MSE or entropy.

Memory is bounded: of each tensor the extremes and a histogram are kept. The extremes are exact; the histogram is fed an
even sample of each batch.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

Method = Literal["minmax", "percentile", "mse", "entropy"]
PERCENTILE = 99.999
_BINS = 4096
_SAMPLE = 1 << 16
_LEVELS = 256


class Histogram:
    """Counts of one tensor's values on a grid around zero that doubles its reach when a larger value comes.

    Attributes:
        low: Smallest value seen; ``inf`` before the first.
        high: Largest value seen.
        finite: False once a NaN or an infinity was seen.
        reach: The bins divide [-reach, reach] evenly.
        counts: float64 ``(4096,)``.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.finite = True
        self.reach = 0.0
        self.counts = np.zeros(_BINS)

    def add(self, values: np.ndarray, *, count: bool) -> None:
        """Take in the values of one batch.

        Args:
            values: float32, any shape.
            count: Feed the histogram too, not the extremes alone.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        top = max(abs(low), abs(high))
        if not count or top == 0:
            return
        self._widen(top)
        sample = _evenly(values)
        bins = ((sample / self.reach + 1) * (_BINS // 2)).astype(np.int64)
        self.counts += np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS) * (values.size / sample.size)

    def _widen(self, top: float) -> None:
        if not self.reach:
            self.reach = 2.0 ** math.ceil(math.log2(top) + 1e-9)
        while self.reach < top:
            quarter = _BINS // 4
            halved = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(_BINS)
            self.counts[quarter:-quarter] = halved
            self.reach *= 2

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin, ``(4096,)``."""
        return (np.arange(_BINS) + 0.5) * (2 * self.reach / _BINS) - self.reach


def _evenly(values: np.ndarray) -> np.ndarray:
    """About 65,536 of the values at equal distances, a distance that shares no divisor with any axis."""
    flat = values.reshape(-1)
    step = max(1, flat.size // _SAMPLE)
    while math.gcd(step, flat.size) > 1:
        step += 1
    return flat[::step]


def find_range(seen: Histogram, method: Method, percentile: float = PERCENTILE) -> tuple[float, float]:
    """The range to quantize to; it lies within the extremes and holds zero.

    Args:
        seen: The tensor's values.
        method: ``minmax`` clips nothing; ``percentile`` clips the outermost values; ``mse`` takes the range whose
            8-bit rounding has the least mean squared error; ``entropy`` the one with the least Kullback-Leibler
            divergence (Migacz 2017, "8-bit inference with TensorRT").
        percentile: Of the values that stay inside, in percent.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if not math.isfinite(low) or not math.isfinite(high):
        return 0.0, 0.0
    if method == "minmax" or not seen.counts.any():
        return low, high
    search = {"percentile": _percentile, "mse": _mse, "entropy": _entropy}[method]
    found = search(seen, low, high, percentile)
    return max(low, found[0]), min(high, found[1])


def _percentile(seen: Histogram, low: float, high: float, percentile: float) -> tuple[float, float]:
    """What is cut is cut at both ends, or at the one end of a tensor that has one sign."""
    share = np.cumsum(seen.counts) / seen.counts.sum()
    cut = 1 - percentile / 100
    cut = cut / 2 if low < 0 < high else cut
    width = 2 * seen.reach / _BINS
    first, last = np.searchsorted(share, [cut, 1 - cut])
    # outer edges of the bins
    return min(0.0, first * width - seen.reach), max(0.0, (last + 1) * width - seen.reach)


def _mse(seen: Histogram, low: float, high: float, _percentile: float) -> tuple[float, float]:
    """Each end in turn, in steps of a fiftieth, until neither moves."""
    used = seen.counts > 0
    x, weight = seen.centers[used], seen.counts[used]

    def error(a: float, b: float) -> float:
        step = (b - a) / (_LEVELS - 1)
        return float(weight @ (x - np.clip(np.round((x - a) / step), 0, _LEVELS - 1) * step - a) ** 2)

    shares = np.linspace(0.02, 1, 50)
    for _ in range(3):
        before = low, high
        if high > 0:
            high = min((high * s for s in shares), key=lambda b: error(low, b))
        if low < 0:
            low = min((low * s for s in shares), key=lambda a: error(a, high))
        if (low, high) == before:
            break
    return low, high


def _entropy(seen: Histogram, low: float, high: float, _percentile: float) -> tuple[float, float]:
    """A threshold on magnitudes: the distribution clipped at it against the same in 128 levels (256 for one sign).

    Zeros don't count, which every range holds exactly: the peak that a ReLU leaves would decide alone. Bins are joined
    until they hold 50 values on average: the divergence of thin counts is noise.
    """
    half = _BINS // 2
    counts = seen.counts[half:] + seen.counts[:half][::-1]
    levels = _LEVELS // 2 if low < 0 < high else _LEVELS
    while half > 2 * levels and counts.sum() < 50 * half:
        half //= 2
        counts = counts.reshape(-1, 2).sum(1)
    counts[0] = min(counts[0], counts[1])
    best, threshold = math.inf, half
    for bins in range(levels, half + 1, levels // 8):
        inside = counts[:bins]
        clipped = inside.copy()
        clipped[-1] += counts[bins:].sum()
        group = np.arange(bins) * levels // bins
        filled = inside > 0
        total = np.bincount(group, inside, levels)
        kinds = np.bincount(group, filled, levels)
        coarse = np.where(filled, (total / np.maximum(kinds, 1))[group], 0)
        loss = _divergence(clipped, coarse)
        if loss < best:
            best, threshold = loss, bins
    reach = threshold * seen.reach / half
    return -reach, reach


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Kullback-Leibler divergence of two histograms; a bin that only ``p`` has counts as a tiny share in ``q``."""
    if not q.any():
        return math.inf
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-9)
    used = p > 0
    return float(p[used] @ np.log(p[used] / q[used]))
