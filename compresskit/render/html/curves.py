"""Training, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

from compresskit.render import figures
from compresskit.render.html.compared import MARGIN
from compresskit.render.html.markup import Chart, label
from compresskit.render.html.style import DASHES, PALETTE, SYMBOLS
from compresskit.report import Report


def curves(report: Report) -> list[Chart]:
    """A chart for each figure of each training in the history; the epoch whose weights remain is marked."""
    out = []
    for step, applied in enumerate(report.history, 1):
        training = (applied.get("facts") or {}).get("training")
        if not isinstance(training, dict):
            continue
        points = training.get("curve")
        rows = [p for p in points if isinstance(p, dict) and _real(p.get("epoch"))] if isinstance(points, list) else []
        keys = dict.fromkeys(key for row in rows for key in row if key != "epoch")
        for index, key in enumerate(keys):
            chart = _curve(f"{step}. {figures.clean(applied.get('name'))}", key, rows, training, index)
            out += [chart] if chart else []
    return out


def _curve(step: str, key: str, rows: list[dict[str, Any]], training: dict[str, Any], index: int) -> Chart | None:
    found = [(row["epoch"], row[key]) for row in rows if _real(row.get(key))]
    if not found:
        return None
    place = 1 + index % (len(DASHES) - 1)
    trace = {
        "type": "scatter", "mode": "lines+markers",
        "x": [epoch for epoch, _ in found], "y": [value for _, value in found],
        "line": {"color": PALETTE[place], "dash": DASHES[index % len(DASHES)], "width": 2.2},
        "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7},
        "hovertemplate": f"epoch %{{x}}: %{{y:.5g}}<extra>{label(key)}</extra>",
    }  # fmt: skip
    kept = training.get("kept_epoch")
    shapes = []
    if _real(kept) and len(found) > 1:
        shapes.append(
            {
                "type": "line", "x0": kept, "x1": kept, "y0": 0, "y1": 1, "yref": "paper",
                "line": {"dash": "dot", "width": 1.5, "color": "#8a919c"},
            }
        )  # fmt: skip
    layout = {
        "margin": MARGIN,
        "shapes": shapes,
        "showlegend": False,
        "xaxis": {"title": {"text": "epoch"}, "fixedrange": True, **({"dtick": 1} if len(found) <= 12 else {})},
        "yaxis": {"fixedrange": True, "nticks": 6, **({"tickformat": ".2~e"} if key == "lr" else {})},
    }
    named = {"loss": "Training loss", "lr": "Learning rate"}.get(key, f"{figures.clean(key)}, held out")
    note = f"{step}; dotted: the epoch that was kept" if shapes else step
    lines = [(f"{epoch:g}", f"{value:.6g}") for epoch, value in found]
    return Chart(named, [trace], layout, ("epoch", key), lines, note, 250)


def _real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
