"""From latencies to the lines of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compresskit.benchmark import machine, stats
from compresskit.benchmark.plan import Spec, Timing
from compresskit.benchmark.stats import Estimate
from compresskit.report import Distribution, Measurement

QUANTILES = 41
"""So many quantiles are kept of a model's latencies: each 2.5 %, both ends included."""


def summary(spec: Spec, timing: Timing) -> list[Measurement]:
    """The figures of one model by itself, see :func:`compresskit.benchmark.run.bench`."""
    calls = _calls(timing)
    middle = stats.estimate([float(np.median(process)) / 1e6 for process in timing.medians()])
    mean = stats.estimate([float(np.mean(process)) / 1e6 for process in timing.means()])
    typical = mean if timing.varied else middle
    rate = 1e3 * timing.rows
    highest = rate / typical.low if typical.low else math.inf
    flipped = Estimate(rate / typical.value, rate / typical.high, highest, typical.n)
    found = [measurement(spec, timing, "latency_p50", middle, "ms")]
    if timing.varied:
        found.append(measurement(spec, timing, "latency_mean", mean, "ms"))
    for percent in (95, 99):
        value = float(np.percentile(calls, percent))
        found.append(measurement(spec, timing, f"latency_p{percent}", Estimate(value, 0, math.inf, len(calls)), "ms"))
    found.append(measurement(spec, timing, "throughput", flipped, "1/s"))
    found.append(measurement(spec, timing, "load", _median(timing.load_ms), "ms"))
    found.append(measurement(spec, timing, "first_call", _median(timing.first_ms), "ms"))
    if timing.peak:
        found.append(measurement(spec, timing, "peak_memory", _median(timing.peak), "bytes"))
    if timing.joules:
        found.append(measurement(spec, timing, "energy", _median(timing.joules), "J"))
    if timing.device_ms:
        found.append(measurement(spec, timing, "device_time", _median(timing.device_ms), "ms"))
    if timing.device_bytes:
        found.append(measurement(spec, timing, "device_memory", _median(timing.device_bytes), "bytes"))
    return found


def distribution(spec: Spec, timing: Timing) -> Distribution:
    """All latencies of one model, as ``QUANTILES`` evenly spaced quantiles in ms."""
    calls = _calls(timing)
    return Distribution(
        model=spec.name,
        quantiles=[float(value) for value in np.quantile(calls, np.linspace(0, 1, QUANTILES))],
        n=len(calls),
        runtime=spec.runtime,
        batch=timing.rows,
        threads=spec.threads or machine.cores(),
        sequence=timing.tokens,
    )


def measurement(spec: Spec, timing: Timing, name: str, found: Estimate, unit: str) -> Measurement:
    """One figure of a model at the point where it was timed."""
    bounded = found.low > 0 and found.high < math.inf
    return Measurement(
        model=spec.name,
        name=name,
        value=found.value,
        unit=unit,
        n=found.n,
        low=found.low if bounded else None,
        high=found.high if bounded else None,
        runtime=spec.runtime,
        batch=timing.rows,
        threads=spec.threads or machine.cores(),
        sequence=timing.tokens,
    )


def _calls(timing: Timing) -> np.ndarray:
    """Every latency that was taken, ms."""
    return np.concatenate([turn for process in timing.rounds for turn in process]) / 1e6


def _median(values: Sequence[float]) -> Estimate:
    return Estimate(float(np.median(values)), min(values), max(values), len(values))
