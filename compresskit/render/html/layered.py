"""What is known of single layers: bytes, bits, zeros, rank, rounding, and what each node takes of a call."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compresskit.render import figures
from compresskit.render.html.chart import Axis, Chart, Mark, Series, order_of, span, unit
from compresskit.render.html.markup import table
from compresskit.render.nodes import grouped
from compresskit.report import LayerEntry, Report

_NODES = 40
_NORM = re.compile(r"(Batch|Layer|Instance|Group|RMS)?Norm(alization)?(\dd)?")


@dataclass(frozen=True)
class _Kind:
    """A figure of a layer.

    Attributes:
        title: What it is.
        value: Where it is found.
        shown: Writes it.
        axis: Writes it on an axis.
        least: How far two layers must differ for a picture to say more than a line.
    """

    title: str
    value: Callable[[LayerEntry], float | None]
    shown: Callable[[float], str]
    axis: Callable[[float], str]
    least: float = 0.0


_KINDS = (
    _Kind("Bytes", lambda e: float(e.bytes), figures.size, figures.size),
    _Kind("Bits per weight", lambda e: e.bits, lambda v: f"{v:.3g}", unit("")),
    _Kind(
        "Sparsity", lambda e: None if e.sparsity is None else 100 * e.sparsity, lambda v: f"{v:.1f} %", unit("%"), 1.0
    ),
    _Kind("Rank", lambda e: None if e.rank is None else float(e.rank), lambda v: f"{v:.0f}", unit("")),
    _Kind("SQNR of the weights", lambda e: e.sqnr, lambda v: f"{v:.1f} dB", unit("dB")),
)


def layers(report: Report) -> list[Chart]:
    """A chart for each figure in which the layers of a model differ."""
    found = [_chart(report, kind) for kind in _KINDS]
    return [chart for chart in found if chart is not None]


def layer_table(report: Report) -> str:
    """All that is known of each layer, a line a layer and model."""
    known = [kind for kind in _KINDS if any(kind.value(entry) is not None for entry in report.layers)]
    if not known:
        return ""
    named = list(dict.fromkeys(entry.name for entry in report.layers))
    places, models = {name: place for place, name in enumerate(named)}, order_of(report)
    ordered = sorted(report.layers, key=lambda e: (places[e.name], models.get(e.model, len(models))))
    lines = [
        (entry.name, entry.model, entry.kind, f"{entry.parameters:,}", *(_cell(kind, entry) for kind in known))
        for entry in ordered
    ]
    return table(("layer", "model", "kind", "parameters", *(kind.title for kind in known)), lines)


def _cell(kind: _Kind, entry: LayerEntry) -> str:
    value = kind.value(entry)
    return figures.DASH if value is None else kind.shown(value)


def folded_norms(report: Report) -> set[str]:
    """Normalization layers that only a compressed model lists: the original's graph has them in its other layers."""
    base = report.models[0].name if report.models else ""
    own = {entry.name for entry in report.layers if entry.model == base}
    return {e.name for e in report.layers if own and e.name not in own and _NORM.fullmatch(e.kind)}


def _chart(report: Report, kind: _Kind) -> Chart | None:
    """A chart of one figure by layer; None where it isn't known, or the same in all layers of each model."""
    hidden = folded_norms(report)
    found: dict[str, dict[str, float]] = {}
    for entry in report.layers:
        if entry.name not in hidden and (value := kind.value(entry)) is not None:
            found.setdefault(entry.model, {})[entry.name] = value
    spread = max((max(own.values()) - min(own.values()) for own in found.values()), default=0.0)
    if spread <= kind.least:
        return None
    known = {name for own in found.values() for name in own}
    names = [name for name in dict.fromkeys(entry.name for entry in report.layers) if name in known]
    rows = {name: row for row, name in enumerate(names)}
    series = [
        Series(
            model, "bars",
            [Mark(v, rows[n], f"{n}, {model}: {kind.shown(v)}", value=kind.shown(v)) for n, v in found[model].items()],
            place,
        )
        for model, place in order_of(report).items() if model in found
    ]  # fmt: skip
    most = max(value for own in found.values() for value in own.values())
    note = f"{len(names)} layers, the first at the top"
    if hidden and kind is _KINDS[0]:
        left = "1 normalization layer" if len(hidden) == 1 else f"{len(hidden)} normalization layers"
        note += f"; {left} that the original's graph has folded into others: in the table"
    return Chart(kind.title, series, Axis(0.0, most * 1.02, shown=kind.axis), Axis(rows=names), note=note)


def nodes(report: Report) -> list[Chart]:
    """What each node takes of a call, by the runtime's profiler: the most expensive first, a chart a profile."""
    out = []
    places = order_of(report)
    for model, at, ranked in grouped(report):
        top = ranked[:_NODES]
        marks = [
            Mark(100 * n.share, row, f"{n.name or n.op}: {figures.percent(n.share)}", value=figures.percent(n.share))
            for row, n in enumerate(top)
        ]
        rows: Sequence[str] = [f"{node.name or node.op} ({node.op})" for node in top]
        runtime, batch = top[0].runtime, top[0].batch
        rest = sum(node.share for node in ranked[_NODES:])
        parts = (
            figures.clean(runtime), f"batch {batch}" if batch else "", f"{len(ranked)} nodes",
            f"those not drawn take {100 * rest:.1f} %" if rest else "",
        )  # fmt: skip
        lines = [(n.name, n.op, figures.milliseconds(n.ms), figures.percent(n.share)) for n in ranked]
        title = f"Share of a call: {figures.clean(model)}{f', {at}' if at else ''}"
        x = Axis(0.0, span((mark.x for mark in marks), room=0.02)[1], shown=unit("%"))
        series = [Series(model, "bars", marks, places.get(model, 0))]
        note = ", ".join(part for part in parts if part)
        out.append(Chart(title, series, x, Axis(rows=rows), ("node", "operator", "ms", "share"), lines, note))
    return out
