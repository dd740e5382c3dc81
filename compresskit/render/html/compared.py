"""Before and after: size, quality and speed of each model, with intervals where they are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from compresskit.render import figures, rows
from compresskit.render.html.markup import Chart, label
from compresskit.render.html.style import DASHES, PALETTE, SYMBOLS
from compresskit.report import Distribution, Measurement, Report

_INTERVAL = "whiskers: 95 % interval"
_TITLES = {"latency_p50": "Latency, median", "throughput": "Throughput", "peak_memory": "Peak memory"}
AS_FAST = {
    "type": "line", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "yref": "paper",
    "line": {"dash": "dot", "width": 1.5, "color": "#8a919c"},
}  # fmt: skip
"""A line where the speed-up is 1."""
MARGIN = {"l": 8, "r": 16, "t": 8, "b": 36}


def comparisons(report: Report) -> list[Chart]:
    """Size, each quality figure, and the median latency under each runtime and batch."""
    charts = [sizes(report)] if report.models else []
    names = dict.fromkeys(m.name for m in report.measurements if m.name not in rows.NO_QUALITY)
    charts += [_dots(report, name, _called(report, name)) for name in names]
    for run in () if rows.is_sweep(report) else rows.runs(report):
        if found := _called(report, "latency_p50", run):
            charts.append(_latency(report, found, rows.run_name(run)))
        if ratios := _called(report, "speedup", run):
            charts.append(_speedups(report, ratios, rows.run_name(run)))
    memory = _called(report, "peak_memory")
    if memory and len({m.model for m in memory}) == len(memory):
        charts.append(_bars(report, "Peak memory", memory, figures.size, "B"))
    return charts


def _called(report: Report, name: str, run: tuple[str, int | None] | None = None) -> list[Measurement]:
    """The measurements of a name, under one runtime and batch or all of them."""
    return [m for m in report.measurements if m.name == name and run in (None, (m.runtime, m.batch))]


def order_of(report: Report) -> dict[str, int]:
    """Each model's place, which gives its colour, symbol and pattern."""
    return {entry.name: index for index, entry in enumerate(report.models)}


def pick(values: Sequence[str], index: int) -> str:
    """An entry of a palette; what goes past its end starts over behind the baseline's."""
    return values[index] if index < len(values) else values[1 + (index - 1) % (len(values) - 1)]


def sizes(report: Report) -> Chart:
    """Bytes that ship, a bar a model."""
    found = [Measurement(model=m.name, name="size", value=float(m.bytes)) for m in report.models]
    return _bars(report, "Size of the deployed file", found, figures.size, "B")


def _bars(
    report: Report, title: str, found: Sequence[Measurement], shown: Callable[[float], str], unit: str, note: str = ""
) -> Chart:
    places = order_of(report)
    trace: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "x": [m.value for m in found],
        "y": [label(m.model, 26) for m in found],
        "text": [shown(m.value) for m in found],
        "textposition": "auto",
        "insidetextanchor": "end",
        "constraintext": "none",
        "hovertemplate": "%{y}: %{text}<extra></extra>",
        "marker": {
            "color": [pick(PALETTE, places.get(m.model, 0)) for m in found],
        },
        "cliponaxis": False,
    }
    if any(m.low is not None for m in found):
        trace |= {"error_x": errors(found), "textposition": "inside", "insidetextanchor": "start"}
    # Room at the right for a label that doesn't fit into its bar.
    most = max((m.value if m.high is None else m.high for m in found), default=1.0) or 1.0
    layout = _lying(len(found), {"range": [0, most * 1.22], "ticksuffix": f" {unit}" if unit != "B" else "B"})
    lines = [(m.model, shown(m.value), interval(m, shown)) for m in found]
    return Chart(title, [trace], layout, ("model", title.lower(), "95 % interval"), lines, note, height(len(found)))


def _dots(report: Report, name: str, found: Sequence[Measurement]) -> Chart:
    """A quality figure: points with intervals, on an axis that needn't start at zero."""
    places = order_of(report)
    unit = figures.clean(found[0].unit)
    found = [m for m in found if math.isfinite(m.value)]
    traces = []
    for m in found:
        place = places.get(m.model, 0)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [m.value],
                "y": [label(m.model, 26)],
                "text": [figures.number(m.value)],
                "textposition": "top center",
                "hovertemplate": f"%{{y}}: {figures.number(m.value)} {label(unit)}<extra></extra>",
                "marker": {"size": 12, "color": pick(PALETTE, place), "symbol": pick(SYMBOLS, place)},
                "showlegend": False,
                "cliponaxis": False,
                **({"error_x": errors([m])} if m.low is not None else {}),
            }
        )
    counts = ", ".join(dict.fromkeys(f"n = {m.n}" for m in found))
    note = "; ".join(part for part in (counts, _INTERVAL if any(m.low is not None for m in found) else "") if part)
    layout = _lying(len(found), {"ticksuffix": f" {unit}" if unit else "", "range": _range(found)})
    layout["yaxis"]["range"] = [len(found) - 0.5, -0.75]
    title = figures.clean(name).replace("_", " ")
    title = title[:1].upper() + title[1:] + (f", {unit}" if unit else "")
    lines = [(m.model, figures.number(m.value), interval(m, figures.number), str(m.n)) for m in found]
    return Chart(title, traces, layout, ("model", "value", "95 % interval", "n"), lines, note, height(len(found)) + 14)


def _range(found: Sequence[Measurement]) -> list[float]:
    low = min(m.value if m.low is None else min(m.low, m.value) for m in found)
    high = max(m.value if m.high is None else max(m.high, m.value) for m in found)
    space = (high - low) * 0.2 or abs(high) * 0.05 or 1.0
    return [low - space, high + space]


def _latency(report: Report, found: Sequence[Measurement], run: str) -> Chart:
    note = "; ".join(part for part in (run, _INTERVAL if any(m.low is not None for m in found) else "") if part)
    return _bars(report, _TITLES["latency_p50"], found, lambda value: f"{figures.milliseconds(value)} ms", "ms", note)


def _speedups(report: Report, found: Sequence[Measurement], run: str) -> Chart:
    chart = _dots(report, "speedup", found)
    layout = chart.layout | {
        "shapes": [AS_FAST],
    }
    low, high = chart.layout["xaxis"]["range"]
    layout["xaxis"] = layout["xaxis"] | {"range": [min(low, 0.95), max(high, 1.05)], "ticksuffix": "×"}
    note = f"{run}; dotted: as fast as the baseline; {_INTERVAL}"
    return Chart("Speed-up", chart.data, layout, chart.header, chart.lines, note, chart.height)


def errors(found: Sequence[Measurement]) -> dict[str, Any]:
    """The whiskers of measurements."""
    up = [max(0.0, (m.value if m.high is None else m.high) - m.value) for m in found]
    down = [max(0.0, m.value - (m.value if m.low is None else m.low)) for m in found]
    return {
        "type": "data", "symmetric": False, "array": up, "arrayminus": down,
        "thickness": 1.8, "width": 5, "color": "#8a919c",
    }  # fmt: skip


def interval(m: Measurement, shown: Callable[[float], str]) -> str:
    """The 95 % interval as text."""
    return figures.DASH if m.low is None or m.high is None else f"{shown(m.low)} to {shown(m.high)}"


def _lying(count: int, xaxis: dict[str, Any]) -> dict[str, Any]:
    return {
        "margin": MARGIN,
        "bargap": 0.35,
        "xaxis": {"nticks": 5, "fixedrange": True, **xaxis},
        "yaxis": {"type": "category", "range": [count - 0.5, -0.5], "fixedrange": True, "showgrid": False},
        "showlegend": False,
    }


def height(count: int) -> int:
    """Pixels of a chart with as many rows."""
    return 56 + 46 * max(count, 1)


def latencies(report: Report) -> list[Chart]:
    """The distribution of all timed calls: one picture for each runtime, batch, threads and sequence."""
    groups: dict[tuple[Any, ...], list[Distribution]] = {}
    for found in report.latencies:
        if len(found.quantiles) > 1:
            groups.setdefault((found.runtime, found.batch, found.threads, found.sequence), []).append(found)
    return [_distribution(report, point, found) for point, found in groups.items()]


def _distribution(report: Report, point: tuple[Any, ...], found: Sequence[Distribution]) -> Chart:
    places = order_of(report)
    traces, lines = [], []
    for one in found:
        place = places.get(one.model, 0)
        steps = [100 * i / (len(one.quantiles) - 1) for i in range(len(one.quantiles))]
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": label(one.model, 26), "x": one.quantiles, "y": steps,
                "line": {"color": pick(PALETTE, place), "dash": pick(DASHES, place), "width": 2.2},
                "hovertemplate": "%{y:.0f} % of calls within %{x:.3g} ms<extra></extra>",
            }
        )  # fmt: skip
        picked = (_at(one.quantiles, q) for q in (0, 0.25, 0.5, 0.75, 0.95, 0.99, 1))
        lines.append((one.model, *map(figures.milliseconds, picked), str(one.n)))
    known = [value for one in found for value in one.quantiles]
    layout = {
        "margin": MARGIN | {"t": 28},
        "xaxis": {"title": {"text": "ms"}, "type": "log", "range": log_range(known), "fixedrange": True},
        "yaxis": {"ticksuffix": " %", "range": [0, 100], "fixedrange": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "showlegend": True,
    }
    runtime, batch, threads, sequence = point
    named = (("batch", batch), ("threads", threads), ("sequence", sequence))
    where = ", ".join([figures.clean(runtime), *(f"{k} {v}" for k, v in named if v is not None)]).strip(", ")
    header = ("model, ms", "least", "25 %", "50 %", "75 %", "95 %", "99 %", "most", "n")
    note = f"{where}; share of calls that were done in this time, log axis"
    return Chart("Latency of all calls", traces, layout, header, lines, note, 300)


def log_range(values: Sequence[float]) -> list[float]:
    """The range of a logarithmic axis. Plotly's own goes back to its default of 0.1 to a million on a resize."""
    known = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(known)), math.log10(max(known))
    space = (high - low) * 0.06 or 0.1
    return [low - space, high + space]


def _at(quantiles: Sequence[float], share: float) -> float:
    place = share * (len(quantiles) - 1)
    low = int(place)
    high = min(low + 1, len(quantiles) - 1)
    return quantiles[low] + (quantiles[high] - quantiles[low]) * (place - low)
