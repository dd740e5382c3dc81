"""Quality against size and against speed, with the models that no other beats in both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from compresskit.render import figures, rows
from compresskit.render.html.chart import Axis, Chart, Mark, Series, metric, order_of, span, unit
from compresskit.report import Measurement, Report

Point = tuple[str, float, Measurement]


def tradeoffs(report: Report) -> list[Chart]:
    """Quality over size, and over the time of a call; nothing with fewer than three models."""
    if len(report.models) < 3:
        return []
    name, higher = _metric(report)
    quality = report.values(name)
    sizes = {m.name: float(m.bytes) for m in report.models if m.bytes}
    # Times of different runs aren't comparable; ratios to a baseline that ran in turns are.
    times = {name: 1 / m.value for name, m in report.values("speedup").items() if m.value > 0}
    times |= {report.models[0].name: 1.0} if times else {}
    out = []
    for title, values, about, shown in (
        ("Quality and size", sizes, "", figures.size),
        ("Quality and time of a call", times, "; 1× is the original's time", unit("×")),
    ):
        points = [
            (name, value, quality[name])
            for name, value in values.items()
            if name in quality and math.isfinite(quality[name].value)
        ]
        if len(points) > 2:
            out.append(_scatter(report, title, points, higher, about, shown))
    return out


def _metric(report: Report) -> tuple[str, bool]:
    if report.evaluation is not None and report.values(report.evaluation.metric):
        return report.evaluation.metric, report.evaluation.higher_is_better
    known = Counter(m.name for m in report.measurements if m.name not in rows.NO_QUALITY)
    name = max(known, key=lambda name: known[name], default="")
    return name, name != "perplexity"


def front(points: Sequence[Point], higher: bool) -> list[Point]:
    """The points that no other equals in cost and quality while beating it in one, the cheapest first."""
    sign = 1 if higher else -1
    out: list[Point] = []
    for point in sorted(points, key=lambda p: (p[1], -sign * p[2].value)):
        if not out or sign * point[2].value > sign * out[-1][2].value:
            out.append(point)
    return out


def _scatter(
    report: Report, title: str, points: Sequence[Point], higher: bool, about: str, shown: Callable[[float], str]
) -> Chart:
    places, best = order_of(report), front(points, higher)
    named = metric(points[0][2].name)
    measure = figures.clean(points[0][2].unit)
    series = [Series("no other is better in both", "front", _corners(best, higher))]
    for name, cost, found in points:
        text = f"{name}: {_cost(shown, cost)}, {named} {figures.number(found.value)} {measure}"
        mark = Mark(cost, found.value, text, found.low, found.high)
        series.append(Series(name, "points", [mark], places.get(name, 0)))
    x = Axis(*span((cost for _, cost, _ in points), log=True), shown=shown, log=True)
    ends = span(end for _, _, m in points for end in (m.low, m.value, m.high))
    y = Axis(*ends, title=f"{named}{f', {measure}' if measure else ''}")
    winners = {name for name, _, _ in best}
    lines = [
        (name, _cost(shown, cost), figures.number(found.value), "yes" if name in winners else "no")
        for name, cost, found in points
    ]
    note = f"{'up' if higher else 'down'} and to the left is better; whiskers: 95 % interval{about}"
    return Chart(title, series, x, y, ("model", "cost", named, "on the front"), lines, note)


def _cost(shown: Callable[[float], str], cost: float) -> str:
    return shown(float(f"{cost:.3g}"))


def _corners(best: Sequence[Point], higher: bool) -> list[Mark]:
    """The front as steps: up to the next point's cost nothing is better than the point before it."""
    out: list[Mark] = []
    for before, (_, cost, found) in zip([None, *best], best, strict=False):
        if before is not None:
            out.append(Mark(cost, before[2].value, ""))
        out.append(Mark(cost, found.value, ""))
    return out
