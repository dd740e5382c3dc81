"""What the measurements say of each limit that a result must keep."""

from __future__ import annotations

from compresskit.bench.run import change
from compresskit.quality.drop import parse_drop, within
from compresskit.quality.metrics import Metric
from compresskit.recipe.limits import DEFAULT_DROP, Limits, parse_size
from compresskit.report import Gate, Measurement, ModelEntry
from compresskit.runner.measure import Quality

_SAME = 1.001
"""Growth that nobody would call so: two constants that were equal, and shared, before."""


def gates(models: list[ModelEntry], quality: Quality | None, speed: list[Measurement], limits: Limits) -> list[Gate]:
    """One gate for each limit that was asked for, and the default ones, for each model but the first.

    Args:
        models: Entries of the report, the baseline first.
        quality: None when it wasn't measured.
        speed: Measurements of :func:`compresskit.runner.measure.speed`; empty when it wasn't measured.
        limits: What the user asked for.
    """
    found: list[Gate] = []
    several = len(models) > 2
    speedups = {m.model: m for m in speed if m.name == "speedup"}
    for entry in models[1:]:
        prefix = f"{entry.name}: " if several else ""
        if quality is not None and entry.name in quality.broken:
            reason = quality.broken[entry.name]
            found.append(Gate(name=f"{prefix}finite outputs", limit="all", value=None, passed=False, reason=reason))
        elif quality is not None and quality.metric is not None:
            found.append(_quality_gate(quality, quality.metric, models[0].name, entry.name, limits, prefix))
        if limits.max_size is not None or not limits.may_grow:
            found.append(_size_gate(models[0], entry, limits, prefix))
        if entry.name in speedups and (limits.min_speedup is not None or not limits.may_grow):
            found.append(_speed_gate(speedups[entry.name], limits, prefix))
    return found


def _quality_gate(quality: Quality, metric: Metric, baseline: str, name: str, limits: Limits, prefix: str) -> Gate:
    before, after, drop = quality.scores[baseline], quality.scores[name], quality.drops[name]
    limit = parse_drop(limits.max_drop or DEFAULT_DROP)
    # The interval says how sure the drop is on other data; the verdict is on this data, so the figures decide.
    passed, lost = within(limit, before.value, after.value, metric.higher_is_better)
    reason = f"{before.value:.3f} → {after.value:.3f} on {after.n} samples"
    if drop.interval is not None:
        reason += f", 95 % interval of the drop {drop.interval[0]:+.2f} to {drop.interval[1]:+.2f}"
    return Gate(
        name=f"{prefix}{metric.name} drop",
        limit=f"≤ {limit}",
        value=lost,
        unit="pt",
        passed=passed,
        asked=limits.max_drop is not None,
        reason=reason,
    )


def _size_gate(baseline: ModelEntry, entry: ModelEntry, limits: Limits, prefix: str) -> Gate:
    allowed = parse_size(limits.max_size) if limits.max_size else round(_SAME * baseline.bytes)
    return Gate(
        name=f"{prefix}size",
        limit=f"≤ {limits.max_size or 'the original'}",
        value=entry.bytes,
        unit="bytes",
        passed=entry.bytes <= allowed,
        asked=limits.max_size is not None,
    )


def _speed_gate(speedup: Measurement, limits: Limits, prefix: str) -> Gate:
    low, high = speedup.low or 0.0, speedup.high if speedup.high is not None else float("inf")
    passed: bool | None
    if limits.min_speedup is not None:
        passed = True if low >= limits.min_speedup else False if high < limits.min_speedup else None
        wish = ""
    else:
        verdict = change(speedup)
        passed = None if verdict == "inconclusive" else verdict != "slower"
        wish = f"; to accept it: --min-speedup {max(0.01, low * 0.9):.2g}" if passed is False else ""
    reason = f"{'too noisy to tell, ' if passed is None else ''}95 % interval {low:.2f} to {high:.2f}{wish}"
    return Gate(
        name=f"{prefix}speed",
        limit=f"≥ {limits.min_speedup:g}×" if limits.min_speedup is not None else "not slower",
        value=speedup.value,
        unit="×",
        passed=passed,
        asked=limits.min_speedup is not None,
        reason=reason,
    )
