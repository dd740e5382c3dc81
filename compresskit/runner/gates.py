"""The limits a result must keep, and what the measurements say of each."""

from __future__ import annotations

from dataclasses import dataclass

from compresskit.bench.run import change
from compresskit.errors import UsageError
from compresskit.quality.drop import parse_drop, within
from compresskit.quality.metrics import Metric
from compresskit.report import Gate, Measurement, ModelEntry
from compresskit.runner.measure import Quality

DEFAULT_DROP = "1%"
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SAME = 1.001
"""Growth that nobody would call so: two constants that were equal, and shared, before."""


@dataclass(frozen=True)
class Limits:
    """What the user asked for; None leaves the default limit.

    Attributes:
        max_drop: ``0.5pt`` or ``1%``. Default: 1 % of the original's figure.
        max_size: ``20MB``. Default: not larger than the original.
        min_speedup: 1.2 is 20 % faster. Default: not slower than the original.
        may_grow: Size and speed have no default limit.
    """

    max_drop: str | None = None
    max_size: str | None = None
    min_speedup: float | None = None
    may_grow: bool = False

    def check(self, *, evaluated: bool, benched: bool, data_option: str = "--eval-data") -> None:
        """Refuse limits that can't be understood, or that nothing will be measured for.

        Args:
            evaluated: Quality will be measured.
            benched: Speed will be measured.
            data_option: What would give the data for the former.

        Raises:
            UsageError: Says which.
        """
        parse_drop(self.max_drop or DEFAULT_DROP)
        parse_size(self.max_size or "1MB")
        if self.max_drop is not None and not evaluated:
            raise UsageError("--max-drop needs evaluation data", f"give {data_option}")
        if self.min_speedup is not None and not benched:
            raise UsageError("--min-speedup needs the speed measured", "leave --no-bench away")
        if self.min_speedup is not None and not self.min_speedup > 0:
            raise UsageError(f"--min-speedup must be above 0, found {self.min_speedup}")


def parse_size(text: str) -> int:
    """``20MB``, ``1.5 GB``, ``900KiB`` or plain bytes, in bytes.

    Raises:
        UsageError: Anything else.
    """
    number = text.strip().rstrip("BbKkMmGgIi ")
    unit = text.strip()[len(number) :].strip().upper() or "B"
    try:
        size = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        raise UsageError(f"a size is a number and a unit as 20MB or 900KiB, found '{text}'") from None
    if not 0 < size < 2**63:
        raise UsageError(f"a size must be above 0, found '{text}'")
    return int(size)


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
