"""Quality against size and against speed, with the models that no other beats in both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from compresskit.render import figures, rows
from compresskit.render.html.compared import MARGIN, log_range, order_of, pick
from compresskit.render.html.markup import Chart, label
from compresskit.render.html.style import PALETTE, SYMBOLS
from compresskit.report import Measurement, Report

Point = tuple[str, float, Measurement]


def tradeoffs(report: Report) -> list[Chart]:
    """Quality over size, and over the time of a call; nothing with fewer than three models."""
    if len(report.models) < 3:
        return []
    metric, higher = _metric(report)
    quality = report.values(metric)
    sizes = {m.name: float(m.bytes) for m in report.models}
    # Times of different runs aren't comparable; ratios to a baseline that ran in turns are.
    times = {name: 1 / m.value for name, m in report.values("speedup").items() if m.value > 0}
    times |= {report.models[0].name: 1.0} if times else {}
    out = []
    for title, values, suffix, shown in (
        ("Quality and size", sizes, "B", figures.size),
        ("Quality and time of a call", times, "×", lambda v: f"{v:.3g}×"),
    ):
        points = [
            (name, value, quality[name])
            for name, value in values.items()
            if name in quality and math.isfinite(quality[name].value)
        ]
        if len(points) > 2:
            out.append(_scatter(report, title, points, metric, higher, suffix, [shown(p[1]) for p in points]))
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
    report: Report, title: str, points: Sequence[Point], metric: str, higher: bool, suffix: str, shown: Sequence[str]
) -> Chart:
    places = order_of(report)
    best = front(points, higher)
    unit = label(points[0][2].unit)
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
            "x": [p[1] for p in best], "y": [p[2].value for p in best],
            "line": {"color": "#8a919c", "dash": "dot", "width": 2, "shape": "hv" if higher else "vh"},
        }
    ]  # fmt: skip
    for (name, value, found), cost in zip(points, shown, strict=True):
        place = places.get(name, 0)
        trace: dict[str, Any] = {
            "type": "scatter", "mode": "markers", "name": label(name, 30), "x": [value], "y": [found.value],
            "hovertemplate": f"{label(name, 60)}<br>{cost}<br>{figures.number(found.value)} {unit}<extra></extra>",
            "marker": {"size": 13, "color": pick(PALETTE, place), "symbol": pick(SYMBOLS, place),
                       "line": {"width": 1, "color": "#5b6470"}},
        }  # fmt: skip
        if found.low is not None and found.high is not None:
            trace["error_y"] = {
                "type": "data", "symmetric": False, "array": [max(0, found.high - found.value)],
                "arrayminus": [max(0, found.value - found.low)], "thickness": 1.4, "width": 4, "color": "#8a919c",
            }  # fmt: skip
        traces.append(trace)
    layout = {
        "margin": MARGIN,
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0},
        "xaxis": {
            "type": "log",
            "range": log_range([p[1] for p in points]),
            "ticksuffix": suffix,
            "nticks": 6,
            "fixedrange": True,
        },
        "yaxis": {"title": {"text": f"{label(metric)}{f', {unit}' if unit else ''}"}, "fixedrange": True},
    }
    winners = {p[0] for p in best}
    lines = [
        (name, cost, figures.number(found.value), "yes" if name in winners else "no")
        for (name, _, found), cost in zip(points, shown, strict=True)
    ]
    note = f"{'up' if higher else 'down'} and to the left is better; dotted: models that no other beats in both"
    if suffix == "×":
        note += "; 1× is the baseline's time"
    return Chart(title, traces, layout, ("model", "cost", metric, "on the front"), lines, note, 380 + 18 * len(points))
