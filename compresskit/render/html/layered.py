"""What is known of single layers: bytes, bits, zeros, rank, rounding, and what each node takes of a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compresskit.render import figures
from compresskit.render.html.compared import MARGIN, order_of, pick
from compresskit.render.html.markup import Chart, label
from compresskit.render.html.style import PALETTE, PATTERNS
from compresskit.render.nodes import grouped
from compresskit.report import LayerEntry, Report

_ROW = 15
_WHOLE = 2000
"""Characters of a name where it tells bars apart and isn't read."""
_NODES = 40
_LETTER = 6.6
"""Width of a letter of the labels in pixels, of size 11."""


def layers(report: Report) -> list[Chart]:
    """A chart for each figure that is known of any layer."""
    found = [_chart(report, kind) for kind in _KINDS]
    return [chart for chart in found if chart is not None] + nodes(report)


@dataclass(frozen=True)
class _Kind:
    """A figure of a layer: its title, where it is found, how it is shown, the unit of its axis, and what is too low."""

    title: str
    value: Callable[[LayerEntry], float | None]
    shown: Callable[[float], str]
    suffix: str = ""
    least: float = -math.inf


_KINDS = (
    _Kind("Bytes", lambda e: float(e.bytes), figures.size, "B"),
    _Kind("Bits per weight", lambda e: e.bits, lambda v: f"{v:.3g}"),
    _Kind("Sparsity", lambda e: None if e.sparsity is None else 100 * e.sparsity, lambda v: f"{v:.1f} %", " %", 0.1),
    _Kind("Rank", lambda e: None if e.rank is None else float(e.rank), lambda v: f"{v:.0f}"),
    _Kind("SQNR of the weights", lambda e: e.sqnr, lambda v: f"{v:.1f} dB", " dB"),
)


def _chart(report: Report, kind: _Kind) -> Chart | None:
    """A chart of one figure; None where it isn't known, or too low everywhere to be looked at."""
    table = _table(report, kind)
    known = [value for line in table.values() for value in line.values()]
    if not known or max(known) < kind.least:
        return None
    shown = kind.shown
    models = [model for model in order_of(report) if any(model in line for line in table.values())]
    traces = [_trace(report, model, {n: k[model] for n, k in table.items() if model in k}, shown) for model in models]
    lines = [(n, *(shown(k[m]) if m in k else figures.DASH for m in models)) for n, k in table.items()]
    note = f"{len(table)} layers, the first at the top"
    layout, height = _tall(list(table), kind.suffix), _height(table, models)
    return Chart(kind.title, traces, layout, ("layer", *models), lines, note, height)


def _table(report: Report, kind: _Kind) -> dict[str, dict[str, float]]:
    """The figure by layer and model, where it is known."""
    found: dict[str, dict[str, float]] = {entry.name: {} for entry in report.layers}
    for entry in report.layers:
        if (value := kind.value(entry)) is not None:
            found[entry.name][entry.model] = value
    return {name: known for name, known in found.items() if known}


def _trace(report: Report, model: str, found: dict[str, float], shown: Callable[[float], str]) -> dict[str, Any]:
    place = order_of(report).get(model, 0)
    return {
        "type": "bar", "orientation": "h", "name": label(model, 26),
        "x": [float(f"{v:.6g}") for v in found.values()],
        "y": [label(name, _WHOLE) for name in found],
        "customdata": list(map(shown, found.values())),
        "hovertemplate": f"%{{y}}<br>{label(model, 40)}: %{{customdata}}<extra></extra>",
        "marker": {
            "color": pick(PALETTE, place),
            "pattern": {"shape": pick(PATTERNS, place), "fgcolor": "rgba(255,255,255,.35)", "fgopacity": 1,
                        "fillmode": "overlay", "size": 5},
        },
    }  # fmt: skip


def _tall(names: Sequence[str], suffix: str, shown: Sequence[str] | None = None) -> dict[str, Any]:
    """The layout of a bar a name. The margin is reckoned here: the library would draw twice to measure 300 labels."""
    words = [_ending(name) for name in names] if shown is None else shown
    places = [label(name, _WHOLE) for name in names]
    return {
        "margin": MARGIN | {"t": 30, "l": 12 + round(_LETTER * max(map(len, words), default=0))},
        "bargap": 0.2, "bargroupgap": 0.05,
        "xaxis": {"nticks": 5, "ticksuffix": suffix, "rangemode": "tozero", "fixedrange": True, "side": "top"},
        "yaxis": {
            "type": "category", "categoryorder": "array", "categoryarray": places,
            "range": [len(names) - 0.5, -0.5], "fixedrange": True, "showgrid": False,
            "tickmode": "array", "tickvals": places, "ticktext": list(words),
            "tickfont": {"size": 11}, "automargin": False,
        },
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom", "yref": "container", "x": 0},
        "showlegend": False,
    }  # fmt: skip


def _ending(name: str) -> str:
    """A layer's name, cut at the front: its end tells it from the others."""
    plain = figures.clean(name)
    return label(plain if len(plain) <= 34 else f"…{plain[-33:]}")


def _height(names: object, models: Sequence[str]) -> int:
    count = len(names) if isinstance(names, (dict, list)) else 1
    return 60 + count * max(_ROW + 3, 9 * len(models) + 4)


def nodes(report: Report) -> list[Chart]:
    """What each node takes of a call, by the runtime's profiler: the most expensive first, a chart a profile."""
    out = []
    for model, at, ranked in grouped(report):
        top = ranked[:_NODES]
        # Two nodes may have one name; a bar each all the same.
        keys = [f"{node.name or node.op} #{index}" for index, node in enumerate(top)]
        trace = _trace(
            report, model, {k: 100 * n.share for k, n in zip(keys, top, strict=True)}, lambda v: f"{v:.1f} %"
        )
        layout = _tall(keys, " %", [label(f"{node.name or node.op} ({node.op})", 36) for node in top])
        runtime, batch = top[0].runtime, top[0].batch
        where = ", ".join(part for part in (figures.clean(runtime), f"batch {batch}" if batch else "") if part)
        rest = sum(node.share for node in ranked[_NODES:])
        count = f"{len(ranked)} nodes"
        note = (f"{where}; {count}" if where else count) + (
            f", those not drawn take {100 * rest:.1f} %" if rest else ""
        )
        lines = [(n.name, n.op, figures.milliseconds(n.ms), figures.percent(n.share)) for n in ranked]
        title = f"Share of a call: {figures.clean(model)}{f', {at}' if at else ''}"
        out.append(
            Chart(title, [trace], layout, ("node", "operator", "ms", "share"), lines, note, _height(keys, [model]))
        )
    return out
