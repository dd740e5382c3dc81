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
from statistics import NormalDist
from typing import Literal

import numpy as np

Change = Literal["faster", "slower", "same", "inconclusive"]

MIN_EFFECT = 0.05  # a ratio nearer to 1 than this is never called a difference
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_T9975 = (127.321, 14.089, 7.453, 5.598, 4.773, 4.317, 4.029, 3.833, 3.690)


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


def decide(ratio: Estimate, min_effect: float = MIN_EFFECT) -> Change:
    """What a speed-up says.

    ``faster`` and ``slower``: the 99.5 % interval excludes 1, and the estimate is at least ``min_effect`` away from it;
    two looks at growing data (see :func:`compresskit.benchmark.run.bench`) then err in 1 of 100 at most.
    ``same``: the 95 % interval lies within ``min_effect`` of 1. Else the machine was too noisy to tell.
    """
    if ratio.n < 2 or not 0 < ratio.low <= ratio.high < math.inf:
        return "inconclusive"
    edge = math.log1p(min_effect)
    centre = math.log(ratio.value)
    half = math.log(ratio.high / ratio.low) / 2
    wide = half * student_quantile(0.9975, ratio.n - 1) / student_quantile(0.975, ratio.n - 1)
    if abs(centre) > wide and abs(centre) >= edge:
        return "faster" if centre > 0 else "slower"
    return "same" if abs(centre) + half < edge else "inconclusive"


def compare(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]], min_effect: float = MIN_EFFECT
) -> Change:
    """Is ``other`` faster than ``base``? Arguments as in :func:`speedup`, answer as in :func:`decide`."""
    return decide(speedup(base, other), min_effect)


def student_quantile(p: float, df: int) -> float:
    """Student's t quantile at ``p`` 0.975 or 0.9975.

    A table up to 9 degrees of freedom, then the Cornish-Fisher expansion (Abramowitz & Stegun 26.7.5), which is right
    to 0.002 there.
    """
    table = _T975 if p == 0.975 else _T9975
    if df <= len(table):
        return table[df - 1]
    z = NormalDist().inv_cdf(p)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / df + second / df**2 + third / df**3 + fourth / df**4
