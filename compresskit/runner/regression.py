"""A report against that of an earlier run: is anything worse, and may the two be compared at all?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from compresskit.errors import UsageError
from compresskit.quality.drop import parse_drop
from compresskit.recipe.limits import DEFAULT_DROP, Limits, parse_growth
from compresskit.report import AXES, Gate, Measurement, ModelEntry, Point, Report, point_name, points_of
from compresskit.runner.gates import SAME, drop_gate, pace, size_gate

TIMED = {"speedup": "speed-up", "latency_p50": "latency"}
"""The measurements that gates on speed look at, and what they are called."""
_MESSAGE = 2000
_GONE = "missing in this report but present in the baseline: measure again"
_APART = "the machine may have been slower: run bench with both files"


def regressions(
    new: Report, old: Report, limits: Limits, *, max_growth: str | None = None, allow_other_machine: bool = False
) -> tuple[list[Gate], list[str]]:
    """Gates that hold each result to the same result of an earlier run.

    Quality is of the same samples, so the figures decide. Of speed the two speed-ups over the original are compared,
    since these cancel what the machine was busy with; noise that hides the answer doesn't fail, a figure that is gone
    does. Of a model alone it is the latencies: not slower passes, slower proves nothing, since nothing cancels there.

    Args:
        new: The report to judge.
        old: The baseline.
        limits: ``max_drop`` holds here too; 1 % by default.
        max_growth: Of the file; the default is not larger.
        allow_other_machine: Compare figures of different machines or versions.

    Returns:
        The gates, and what a reader must know.

    Raises:
        UsageError: The reports are of different things, or of different machines; every difference is named.
    """
    factor, more = parse_growth(max_growth) if max_growth is not None else (SAME, 0)
    pairs = _pairs(new, old)
    _refuse_others(new, old, pairs)
    differences = _elsewhere(new.environment, old.environment)
    if differences and not allow_other_machine:
        raise UsageError(
            f"the baseline is from another machine or other versions (baseline → report): {'; '.join(differences)}",
            "measure both on one machine, or accept the difference with `allow_other_machine`",
            limit=_MESSAGE,
        )
    found: list[Gate] = []
    notes = [f"baseline → report: {'; '.join(differences)}"] if differences else []
    if new.models[0].sha256 != old.models[0].sha256 and len(new.models) > 1:
        notes.append("the baseline has another original of the same size: each model is compared with its own original")
    for entry, before in pairs:
        prefix = f"{entry.name}: " if len(pairs) > 1 else ""
        found += _quality(new, old, entry, before, limits, prefix)
        shown = f"the baseline's{'' if max_growth is None else f' and {max_growth}'}"
        found.append(
            size_gate(
                f"{prefix}size since baseline", entry, before.bytes * factor + more, shown, asked=True,
                reason=f"{before.bytes} → {entry.bytes} bytes",
            )
        )  # fmt: skip
        found += _speeds(new, old, entry, before, prefix)
    speed = _timed(new)
    for what, here, there in (
        ("quality", new.evaluation, old.evaluation),
        (TIMED[speed], new.values(speed), old.values(speed)),
    ):
        if not there:
            notes.append(f"no {what} was measured in {'the baseline' if here else 'either report'}: it is not compared")
    return found, notes


def _timed(report: Report) -> str:
    """The measurement that tells how fast a report's results are."""
    return "speedup" if len(report.models) > 1 else "latency_p50"


def _quality(
    new: Report, old: Report, entry: ModelEntry, before: ModelEntry, limits: Limits, prefix: str
) -> list[Gate]:
    limit = parse_drop(limits.max_drop or DEFAULT_DROP)
    if old.evaluation is None:
        return []
    name = f"{prefix}{old.evaluation.metric} since baseline"
    then, now = _figure(old, old.evaluation.metric, before), _figure(new, old.evaluation.metric, entry)
    if then is None:
        return []
    if now is None:
        return [Gate(name=name, limit=f"≤ {limit}", value=None, unit="pt", passed=None, asked=True, reason=_GONE)]
    return [drop_gate(name, then, now, limit, old.evaluation.higher_is_better, asked=True)]


def _speeds(new: Report, old: Report, entry: ModelEntry, before: ModelEntry, prefix: str) -> list[Gate]:
    """A gate for each point of the baseline."""
    found = []
    name, varied = _timed(new), _threads_vary(new, old)
    now = [m for m in new.measurements if (m.name, m.model) == (name, entry.name)]
    then = [m for m in old.measurements if (m.name, m.model) == (name, before.name)]
    for figure in then:
        where = point_name(figure.point, [m.point for m in then])
        same = next((m for m in now if _same(_point(m, varied), _point(figure, varied))), None)
        found.append(_speed(same, figure, f"{prefix}speed{f' ({where})' if where else ''} since baseline"))
    return found


def _threads_vary(*reports: Report) -> bool:
    """Threads that don't are a fact of the environment, and are compared there."""
    return any(
        len({threads for _, threads, _ in points_of(report.measurements, _timed(report))}) > 1 for report in reports
    )


def _point(measured: Measurement, varied: bool) -> Point:
    """Where it was measured, without threads that don't vary."""
    batch, threads, sequence = measured.point
    return batch, threads if varied else None, sequence


def _same(now: Point, then: Point) -> bool:
    """One point: reports of earlier versions know the batch alone."""
    return all(a == b or a is None or b is None for a, b in zip(now, then, strict=True))


def _speed(now: Measurement | None, then: Measurement, name: str) -> Gate:
    shown = "not slower"
    if now is None:
        return Gate(name=name, limit=shown, value=None, unit="×", passed=None, asked=True, reason=_GONE)
    if then.name == "speedup":
        ratio = _ratio(now, then)
        passed, interval = pace(ratio)
        reason = f"speed-up {then.value:.2f}× → {now.value:.2f}×, {interval}"
    else:
        ratio = _ratio(then, now)
        passed, interval = pace(ratio)
        reason = f"latency {_ms(then.value)} → {_ms(now.value)} ms, {interval}"
        if passed is False:
            passed, reason = None, f"{reason}; {_APART}"
    return Gate(name=name, limit=shown, value=ratio.value, unit="×", passed=passed, reason=reason)


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _ratio(now: Measurement, then: Measurement) -> Measurement:
    """One figure over another. They were measured apart, so that the squares of their errors add up."""
    value = now.value / then.value
    sides = [(m.low, m.high) for m in (now, then)]
    low = high = None
    if all(a and b for a, b in sides):
        half = math.hypot(*(math.log(b / a) / 2 for a, b in sides if a and b))
        low, high = value / math.exp(half), value * math.exp(half)
    return now.model_copy(update={"value": value, "low": low, "high": high, "n": min(now.n, then.n)})


def _figure(report: Report, name: str, entry: ModelEntry) -> Measurement | None:
    return report.values(name).get(entry.name)


def _pairs(new: Report, old: Report) -> list[tuple[ModelEntry, ModelEntry]]:
    """The results of the new report, each with its counterpart: by name where there are several."""
    if not old.models or (len(new.models) == 1) != (len(old.models) == 1):
        raise UsageError(f"the baseline is of {_counted(old)}, the report of {_counted(new)}: they can't be compared")
    here, there = (report.models[1:] or report.models for report in (new, old))
    if len(here) == len(there) == 1:
        return [(here[0], there[0])]
    known = {entry.name: entry for entry in there}
    if known.keys() != {entry.name for entry in here}:
        raise UsageError(
            f"the baseline is of other models (baseline → report): {', '.join(known)} → "
            f"{', '.join(entry.name for entry in here)}"
        )
    return [(entry, known[entry.name]) for entry in here]


def _counted(report: Report) -> str:
    count = len(report.models)
    return "1 model" if count == 1 else f"{count} models"


def _refuse_others(new: Report, old: Report, pairs: list[tuple[ModelEntry, ModelEntry]]) -> None:
    """Refuse figures of different things: data, metric, engine, batch, or an original of another shape."""
    found: list[str] = []
    if new.evaluation is not None and old.evaluation is not None:
        found += _differences("{}", ("metric", "higher_is_better", "data"), old.evaluation, new.evaluation)
    if _timed_at_all(new) and _timed_at_all(old):
        found += _unlike("timed on", _samples(old), _samples(new))
    found += [*_other_figures(new, old, pairs), *_other_points(new, old)]
    first, other, shape = new.models[0], old.models[0], ("bytes", "parameters", "macs")
    if len(new.models) > 1 and first.sha256 != other.sha256:
        unlike = _differences(
            "{} of the original", shape, other, first
        )  # of the same shape it is as fast: trained again
        found += unlike + (_differences("{} of the original", ("sha256",), other, first) if unlike else [])
    if found:
        raise UsageError(
            f"the baseline measured something else (baseline → report): {'; '.join(dict.fromkeys(found))}",
            "measure the baseline again with the same data, metric and original",
            limit=_MESSAGE,
        )


def _other_figures(new: Report, old: Report, pairs: list[tuple[ModelEntry, ModelEntry]]) -> list[str]:
    """What differs in how the figures that are compared were measured."""
    found: list[str] = []
    metric = new.evaluation.metric if new.evaluation else ""
    for entry, before in pairs:
        for name, whats in ((metric, ("n", "runtime", "unit")), (_timed(new), ("runtime",))):
            now, then = _figure(new, name, entry), _figure(old, name, before)
            if now and then:
                found += _differences(f"{{}} of {TIMED.get(name, name)}", whats, then, now)
    return found


def _timed_at_all(report: Report) -> bool:
    return any(measured.name.startswith("latency_") for measured in report.measurements)


def _samples(report: Report) -> str:
    """What its models were timed on."""
    found = report.timed_on
    return "random inputs" if found is None else f"{found.samples} samples of {found.data} ({found.sha256[:12]})"


def _other_points(new: Report, old: Report) -> list[str]:
    """Points of the baseline at which the new report tells no speed, unless it tells none at all."""
    name, varied = _timed(new), _threads_vary(new, old)
    there, here = (
        list(dict.fromkeys(_point(m, varied) for m in report.measurements if m.name == name)) for report in (old, new)
    )
    gone = [point for point in there if not any(_same(other, point) for other in here)]
    if not here or not gone:
        return []
    if len(here) == len(there) == 1:
        pairs = zip(AXES, there[0], here[0], strict=True)
        return [text for axis, then, now in pairs for text in _unlike(f"{axis} of {TIMED[name]}", then, now)]
    return [f"timed at {_at(there)} → at {_at(here)}"]


def _at(points: list[Point]) -> str:
    """Points in full: two reports needn't differ among their own."""
    shown = [[f"{axis} {size}" for axis, size in zip(AXES, point, strict=True) if size] for point in points]
    return "; ".join(" ".join(parts) for parts in shown)


def _differences(what: str, names: Sequence[str], then: object, now: object) -> list[str]:
    """Attributes in which two things differ; ``what`` has a place for the name."""
    return [text for n in names for text in _unlike(what.format(n), getattr(then, n), getattr(now, n))]


def _unlike(what: str, then: Any, now: Any) -> list[str]:
    def shown(value: Any) -> str:
        return "unknown" if value is None else str(value)[:80]

    return [] if then == now else [f"{what} {shown(then)} → {shown(now)}"]


def _elsewhere(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """What differs between two environments. A patch release of Python changes no figure."""
    found: list[str] = []
    found += _unlike("device", old.get("device", "cpu"), new.get("device", "cpu"))  # earlier reports don't say
    for key in ("cpu", "machine", "cores", "threads", "flags", "os", "python"):
        then, now = old.get(key), new.get(key)
        if key == "python":
            then, now = (str(v).rpartition(".")[0] if v else None for v in (then, now))
        if key == "flags":
            found += _flags(then, now)
            continue
        if then is None and now is None:
            found.append(f"{key} unknown in both")
        found += _unlike(key, then, now)
    packages = [part if isinstance(part, dict) else {} for part in (old.get("packages"), new.get("packages"))]
    if not packages[0] and not packages[1]:
        found.append("packages unknown in both")
    for name in sorted(set(packages[0]) | set(packages[1])):
        found += _unlike(name, packages[0].get(name), packages[1].get(name))
    return found


def _flags(then: Any, now: Any) -> list[str]:
    """Instruction sets that only one of two CPUs has: ``flags -avx512f +neon``."""
    before, after = (set(map(str, value)) if isinstance(value, list) else set() for value in (then, now))
    signs = [*(f"-{flag}" for flag in sorted(before - after)), *(f"+{flag}" for flag in sorted(after - before))]
    return [f"flags {' '.join(signs)}"] if signs else []
