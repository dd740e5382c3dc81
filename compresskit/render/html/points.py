"""A sweep: what was timed at several batch sizes, numbers of threads and lengths, a row a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compresskit.render import figures
from compresskit.render.html.compared import AS_FAST, MARGIN, errors, height, interval, log_range, order_of, pick
from compresskit.render.html.markup import Chart, label
from compresskit.render.html.style import PALETTE, SYMBOLS
from compresskit.render.rows import is_sweep
from compresskit.report import Measurement, Point, Report, point_name, points_of

_SHIFT = 0.16
"""How far apart the models of one point lie at most, of the room for a point."""
_ROOM = 0.8
"""What they take of it together."""
_KINDS: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "latency_p50": ("Latency, median", "ms", lambda value: f"{figures.milliseconds(value)} ms"),
    "speedup": ("Speed-up", "×", lambda value: f"{value:.2f}×"),
}


def sweeps(report: Report) -> list[Chart]:
    """Latency and speed-up over all points of a sweep."""
    if not is_sweep(report):
        return []
    timed = {name: [m for m in report.measurements if m.name == name] for name in _KINDS}
    return [_chart(report, name, found) for name, found in timed.items() if found]


def _chart(report: Report, name: str, found: Sequence[Measurement]) -> Chart:
    title, unit, shown = _KINDS[name]
    points = points_of(found, name)
    names = [point_name(point, points) or "–" for point in points]
    models = [model for model in order_of(report) if any(m.model == model for m in found)]
    ends = [end for m in found for end in (m.low, m.value, m.high) if end is not None]
    layout: dict[str, Any] = {
        "margin": MARGIN | {"t": 28},
        "xaxis": {"type": "log", "range": log_range(ends), "title": {"text": unit}, "fixedrange": True, "nticks": 6},
        "yaxis": {
            "range": [len(points) - 0.5, -0.5], "fixedrange": True, "showgrid": False, "zeroline": False,
            "tickmode": "array", "tickvals": list(range(len(points))), "ticktext": [label(name) for name in names],
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "showlegend": True,
    }  # fmt: skip
    if name == "speedup":
        layout["shapes"] = [AS_FAST]
    shift = min(_SHIFT, _ROOM / len(models))
    traces = [_trace(report, model, shift * (index - (len(models) - 1) / 2), found, points, names, shown)
              for index, model in enumerate(models)]  # fmt: skip
    lines = [(names[points.index(m.point)], m.model, shown(m.value), interval(m, shown)) for m in found]
    runtimes = ", ".join(dict.fromkeys(figures.clean(m.runtime) for m in found))
    note = f"{runtimes}; log axis; whiskers: 95 % interval"
    rows = height(len(points)) + 12 * len(points) * max(len(models) - 2, 0)
    return Chart(title, traces, layout, ("point", "model", title.lower(), "95 % interval"), lines, note, rows + 30)


def _trace(
    report: Report, model: str, place: float, found: Sequence[Measurement], points: Sequence[Point],
    names: Sequence[str], shown: Callable[[float], str],
) -> dict[str, Any]:  # fmt: skip
    own = [m for m in found if m.model == model]
    rank = order_of(report)[model]
    where = [points.index(m.point) for m in own]
    return {
        "type": "scatter", "mode": "markers", "name": label(model, 26),
        "x": [m.value for m in own],
        "y": [index + place for index in where],
        "customdata": [f"{label(names[index])}: {shown(m.value)}" for m, index in zip(own, where, strict=True)],
        "hovertemplate": f"{label(model, 40)}, %{{customdata}}<extra></extra>",
        "marker": {"size": 10, "color": pick(PALETTE, rank), "symbol": pick(SYMBOLS, rank)},
        "error_x": errors(own),
    }  # fmt: skip
