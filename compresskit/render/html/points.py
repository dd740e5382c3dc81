"""A sweep: what was timed at several batch sizes, numbers of threads and lengths, a row a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from compresskit.render import figures
from compresskit.render.html.chart import Axis, Chart, Guide, Mark, Series, interval, order_of, span, unit
from compresskit.render.rows import is_sweep
from compresskit.report import Measurement, Report, point_name, points_of

_KINDS: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "speedup": ("Speed-up", "×", lambda value: f"{value:.2f}×"),
    "latency_p50": ("Latency, median", "ms", lambda value: f"{figures.milliseconds(value)} ms"),
}


def sweeps(report: Report) -> list[Chart]:
    """Speed-up and latency over all points of a sweep."""
    if not is_sweep(report):
        return []
    timed = {name: [m for m in report.measurements if m.name == name and 0 < m.value < math.inf] for name in _KINDS}
    return [_chart(report, name, found) for name, found in timed.items() if found]


def _chart(report: Report, name: str, found: Sequence[Measurement]) -> Chart:
    title, measure, shown = _KINDS[name]
    points = points_of(found, name)
    names = [point_name(point, points) or figures.DASH for point in points]
    series = [
        Series(model, "points", [_mark(m, points.index(m.point), names, shown) for m in own], place)
        for model, place in order_of(report).items()
        if (own := [m for m in found if m.model == model])
    ]
    guides = [Guide(1.0, "as fast as the original")] if name == "speedup" else []
    ends = [*(end for m in found for end in (m.low, m.value, m.high)), *(guide.at for guide in guides)]
    x = Axis(*span(ends, log=True), shown=unit(measure), log=True)
    runtimes = ", ".join(dict.fromkeys(figures.clean(m.runtime) for m in found))
    note = f"{runtimes}; log axis; whiskers: 95 % interval"
    lines = [(names[points.index(m.point)], m.model, shown(m.value), interval(m, shown)) for m in found]
    return Chart(
        title, series, x, Axis(rows=names), ("point", "model", title.lower(), "95 % interval"), lines, note, guides
    )


def _mark(m: Measurement, row: int, names: Sequence[str], shown: Callable[[float], str]) -> Mark:
    known = interval(m, shown)
    text = f"{m.model}, {names[row]}: {shown(m.value)}" + (f", {known}" if known != figures.DASH else "")
    return Mark(m.value, row, text, m.low, m.high, shown(m.value))
