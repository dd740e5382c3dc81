"""Is one model faster than another, and by how much? Statistics of processes, not of calls.

Calls within one process are not independent: where a process's memory lies, which core it got and what the neighbours
do moves all of them together, so a test on single calls finds "differences" between a file and itself most of the
time. Here a *generation* is one fresh process for each model, timed in turns, round by round. In a generation the
two models of a round are compared with each other (what drifts or disturbs a round hits both), the median over rounds
is that generation's one log ratio, and only these count as observations: Student's t over a handful of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np

Change = Literal["faster", "slower", "same", "inconclusive"]

MIN_EFFECT = 0.05  # a ratio nearer to 1 than this is never called a difference
_SURE = 0.005


@dataclass(frozen=True)
class Look:
    """How sure a comparison must be to end where the data still grow.

    The errors of all looks add up to that of the comparison at most, however the looks depend on each other.

    Attributes:
        error: Of ``faster`` and ``slower``, both sides together; a bar that is asked about is held to it too.
        same: Of the interval that must lie within the smallest effect.
        sharp: End only where the 95 % interval reaches no further than the smallest effect to either side.
    """

    error: float = _SURE
    same: float = 0.05
    sharp: bool = False


@dataclass(frozen=True)
class Estimate:
    """A positive quantity with its 95 % interval, from ``n`` processes; infinite where ``n`` is 1."""

    value: float
    low: float
    high: float
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Geometric mean of one positive value per process, with a Student interval on the logarithms."""
    logs = np.log(np.asarray(values, np.float64))
    n, centre = len(logs), float(logs.mean())
    if n < 2:
        return Estimate(math.exp(centre), 0.0, math.inf, n)
    half = student_quantile(0.975, n - 1) * float(logs.std(ddof=1)) / math.sqrt(n)
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)


def speedup(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Estimate:
    """How many times faster ``other`` is than ``base``.

    Args:
        base: Latency by generation and round, any unit, positive. Round ``r`` of generation ``g`` was taken next to
            round ``r`` of generation ``g`` of ``other``.
        other: The same for the other model; generations may differ in their number of rounds, the two models not.
    """
    pairs = zip(base, other, strict=True)
    return estimate([float(np.exp(np.median(np.log(np.asarray(a) / np.asarray(b))))) for a, b in pairs])


def decide(ratio: Estimate, min_effect: float = MIN_EFFECT, look: Look = Look()) -> Change:
    """What a speed-up says.

    ``faster`` and ``slower``: the 99.5 % interval excludes 1, and the estimate is at least ``min_effect`` away from it.
    With the earlier looks of :class:`compresskit.benchmark.plan.Plan`, which ask for more, this errs in 1 of 100 at
    most. ``same``: the 95 % interval lies within ``min_effect`` of 1. Else the machine was too noisy to tell.
    """
    if ratio.n < 2 or not 0 < ratio.low <= ratio.high < math.inf:
        return "inconclusive"
    edge = math.log1p(min_effect)
    centre = math.log(ratio.value)
    if abs(centre) > half_width(ratio, look.error) and abs(centre) >= edge:
        return "faster" if centre > 0 else "slower"
    return "same" if abs(centre) + half_width(ratio, look.same) < edge else "inconclusive"


def half_width(ratio: Estimate, error: float) -> float:
    """How far the interval that misses the truth in ``error`` of all cases reaches, on the logarithm."""
    if ratio.n < 2 or not 0 < ratio.low <= ratio.high < math.inf:
        return math.inf
    scale = student_quantile(1 - error / 2, ratio.n - 1) / student_quantile(0.975, ratio.n - 1)
    return math.log(ratio.high / ratio.low) / 2 * scale


def settled(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]], look: Look, bars: Sequence[float] = ()
) -> bool:
    """Whether more data are not needed: ``other`` is faster, slower or the same, and on one side of each of ``bars``.

    Arguments as in :func:`speedup`; ``bars`` are ratios.
    """
    ratio = speedup(base, other)
    if look.sharp and half_width(ratio, 0.05) > math.log1p(MIN_EFFECT):
        return False
    reach = half_width(ratio, look.error)
    beside = all(abs(math.log(ratio.value / bar)) > reach for bar in bars)
    return beside and decide(ratio, look=look) != "inconclusive"


def compare(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]], min_effect: float = MIN_EFFECT
) -> Change:
    """Is ``other`` faster than ``base``? Arguments as in :func:`speedup`, answer as in :func:`decide`."""
    return decide(speedup(base, other), min_effect)


@lru_cache(maxsize=256)
def student_quantile(p: float, df: int) -> float:
    """Student's t quantile at ``p``, above 0.5, with ``df`` degrees of freedom.

    By bisection on the angle whose tangent is t/√df: the probability is a finite sum there (Abramowitz & Stegun 26.7.3
    and 26.7.4). From 200 degrees on by their expansion 26.7.5.
    """
    if df >= 200:
        z = NormalDist().inv_cdf(p)
        return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < 2 * p - 1 else (low, middle)
    return math.tan(low) * math.sqrt(df)


def _within(angle: float, df: int) -> float:
    """Probability that Student's t lies within ±√df·tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if df % 2 else 1.0
    total = term if df > 1 else 0.0
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if df % 2 else sine * total
