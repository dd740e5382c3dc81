"""Training, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

from compresskit.render import figures
from compresskit.render.html.chart import Axis, Chart, Guide, Mark, Series, metric, span
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
    found = [(float(row["epoch"]), float(row[key])) for row in rows if _real(row.get(key))]
    if not found:
        return None
    name = metric(key)
    marks = [Mark(epoch, value, f"epoch {epoch:g}: {name} {value:.5g}") for epoch, value in found]
    kept = training.get("kept_epoch")
    guides = [Guide(float(kept), "kept")] if _real(kept) and kept is not None and len(found) > 1 else []
    x = Axis(*span([*(epoch for epoch, _ in found), *(guide.at for guide in guides)]), title="epoch", whole=True)
    y = Axis(*span(value for _, value in found), shown="{:.3g}".format)
    title = {"loss": "Training loss", "lr": "Learning rate"}.get(key, f"{name}, held out")
    lines = [(f"{epoch:g}", f"{value:.6g}") for epoch, value in found]
    return Chart(title, [Series(name, "trace", marks, 1 + index % 6)], x, y, ("epoch", name), lines, step, guides)


def _real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
