"""Before and after: how far each model's quality and speed are from the original's, and how sure that is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from compresskit.render import figures, rows
from compresskit.render.html.chart import Axis, Chart, Guide, Mark, Series, interval, metric, order_of, span, unit
from compresskit.report import Distribution, Measurement, Report, point_name, points_of

_INTERVAL = "whiskers: 95 % interval"
_DRAWN, _FEW = 99, 20
"""Per cent of the calls that are drawn: one slow call would take most of the width. Few quantiles are drawn whole."""
_LIMIT = re.compile(r"[≤≥] ([\d.]+) ?(pt|%|×)")


def comparisons(report: Report) -> list[Chart]:
    """What has an interval: the change of the metric or else the metric itself, and the speed-up."""
    found = [_changes(report) or _quality(report), None if rows.is_sweep(report) else _speedups(report)]
    return [chart for chart in found if chart is not None]


def _changes(report: Report) -> Chart | None:
    """How much better or worse each model is than the original on the same samples, with the limit."""
    told = report.evaluation
    scores = report.values(told.metric) if told else {}
    base = scores.get(report.models[0].name) if report.models else None
    if told is None or base is None:
        return None
    sign = 1 if told.higher_is_better else -1
    marks: dict[str, Mark] = {}
    for entry in report.models[1:]:
        score, drop = scores.get(entry.name), told.drops.get(entry.name)
        if score is None or drop is None or not all(map(math.isfinite, (score.value, *drop))):
            continue
        change = sign * (score.value - base.value)
        shown = f"{change:+.2f} pt"
        text = f"{entry.name}: {shown}, 95 % interval {-drop[1]:+.2f} to {-drop[0]:+.2f} pt"
        marks[entry.name] = Mark(change, len(marks), text, -drop[1], -drop[0], shown)
    if not marks:
        return None
    name = figures.clean(base.model)
    guides = [Guide(0.0, f"as good as {name}" if len(name) < 20 else "as good as the original")]
    if (limit := _limit(report, f"{told.metric} drop", base.value)) is not None:
        guides.append(Guide(-limit, "limit"))
    ends = [end for mark in marks.values() for end in (mark.low, mark.x, mark.high)] + [g.at for g in guides]
    x = Axis(*span(ends), shown=lambda value: f"{value:+.3g} pt" if value else "0")
    better = "" if sign > 0 else "; right is better"
    note = f"{metric(told.metric)}, n = {base.n}; {_INTERVAL}{better}"
    return Chart(
        "Quality against the original", _series(report, marks), x, Axis(rows=list(marks)), note=note, guides=guides
    )


def _quality(report: Report) -> Chart | None:
    """The first quality figure that has intervals, on a scale that shows its differences."""
    if len(report.models) < 2:
        return None
    names = dict.fromkeys(m.name for m in report.measurements if m.name not in rows.NO_QUALITY)
    for name in names:
        found = [m for m in report.values(name).values() if math.isfinite(m.value)]
        if len(found) > 1 and any(m.low is not None for m in found):
            break
    else:
        return None
    measure = figures.clean(found[0].unit)
    marks = {
        m.model: Mark(m.value, row, f"{m.model}: {_whole(m, measure)}", m.low, m.high, _shown(m.value, measure))
        for row, m in enumerate(found)
    }
    x = Axis(*span(end for m in found for end in (m.low, m.value, m.high)), shown=unit(measure))
    counts = ", ".join(dict.fromkeys(f"n = {m.n}" for m in found))
    note = f"{metric(name)}, {counts}; {_INTERVAL}"
    return Chart("Quality", _series(report, marks), x, Axis(rows=list(marks)), note=note)


def _shown(value: float, measure: str) -> str:
    return f"{figures.number(value)}{f' {measure}' if measure else ''}"


def _whole(m: Measurement, measure: str) -> str:
    known = interval(m, figures.number)
    return _shown(m.value, measure) + (f", 95 % interval {known}" if known != figures.DASH else "")


def _speedups(report: Report) -> Chart | None:
    """The speed-up of each model under each runtime and batch, with what as fast as the original is."""
    found = [m for m in report.measurements if m.name == "speedup" and math.isfinite(m.value) and m.value > 0]
    if not found:
        return None
    runs = rows.runs(report)
    marks: dict[str, Mark] = {}
    owners: dict[str, str] = {}
    for m in found:
        run = rows.run_name((m.runtime, m.batch)) if len(runs) > 1 else ""
        name = f"{m.model}, {run}" if run else m.model
        owners[name] = m.model
        marks[name] = Mark(m.value, len(marks), f"{name}: {figures.speedup(m)}", m.low, m.high, f"{m.value:.2f}×")
    guides = [Guide(1.0, "as fast as the original")]
    if (limit := _limit(report, "speed", 1.0)) is not None and limit != 1:
        guides.append(Guide(limit, "limit"))
    ends = [end for mark in marks.values() for end in (mark.low, mark.x, mark.high)] + [g.at for g in guides]
    x = Axis(*span(ends, log=True), shown=unit("×"), log=True)
    where = rows.run_name(runs[0]) if len(runs) == 1 else ""
    note = "; ".join(part for part in (where, _INTERVAL) if part)
    return Chart("Speed-up", _series(report, marks, owners), x, Axis(rows=list(marks)), note=note, guides=guides)


def _limit(report: Report, gate: str, base: float) -> float | None:
    """The one limit that all gates of a kind have, where it is a number: in points, or times."""
    found = {g.limit for g in report.gates if re.sub(r"^.*: | \(.*\)$", "", g.name) == gate}
    match = _LIMIT.fullmatch(found.pop()) if len(found) == 1 else None
    if match is None:
        return None
    return float(match[1]) * (abs(base) / 100 if match[2] == "%" else 1)


def _series(report: Report, marks: dict[str, Mark], owners: dict[str, str] | None = None) -> list[Series]:
    """The marks of the rows, a series a model: it has one colour and symbol on the whole page."""
    places = order_of(report)
    out: dict[str, list[Mark]] = {}
    for row, mark in marks.items():
        out.setdefault((owners or {}).get(row, row), []).append(mark)
    return [Series(model, "points", own, places.get(model, 0)) for model, own in out.items()]


def latencies(report: Report) -> list[Chart]:
    """The distribution of all timed calls: one picture for each runtime and point."""
    groups: dict[tuple[object, ...], list[Distribution]] = {}
    for found in report.latencies:
        if len(found.quantiles) > 1:
            groups.setdefault((found.runtime, found.batch, found.threads, found.sequence), []).append(found)
    among = points_of(report.measurements)
    return [_distribution(report, found, point_name(_point(found[0]), among)) for found in groups.values()]


def _point(found: Distribution) -> tuple[int | None, int | None, int | None]:
    return found.batch, found.threads, found.sequence


def _distribution(report: Report, found: Sequence[Distribution], where: str) -> Chart:
    places = order_of(report)
    series: list[Series] = []
    lines: list[tuple[str, ...]] = []
    for one in found:
        shares = [100 * i / (len(one.quantiles) - 1) for i in range(len(one.quantiles))]
        marks = [
            Mark(value, share, f"{one.model}: {share:.0f} % of calls within {value:.3g} ms")
            for share, value in zip(shares, one.quantiles, strict=True)
            if share <= _DRAWN or len(shares) < _FEW
        ]
        series.append(Series(one.model, "line", marks, places.get(one.model, 0)))
        picked = (_at(one.quantiles, q) for q in (0, 0.25, 0.5, 0.75, 0.95, 0.99, 1))
        lines.append((one.model, *map(figures.milliseconds, picked), str(one.n)))
    x = Axis(*span((mark.x for one in series for mark in one.marks), log=True), shown=unit("ms"), log=True)
    y = Axis(0, 100, title="share of calls that were done in this time", shown=unit("%"))
    header = ("model, ms", "least", "25 %", "50 %", "75 %", "95 %", "99 %", "most", "n")
    note = ", ".join(part for part in (figures.clean(found[0].runtime), where, "log axis") if part)
    return Chart("Latency of all calls", series, x, y, header, lines, note)


def _at(quantiles: Sequence[float], share: float) -> float:
    place = share * (len(quantiles) - 1)
    low = int(place)
    high = min(low + 1, len(quantiles) - 1)
    return quantiles[low] + (quantiles[high] - quantiles[low]) * (place - low)
