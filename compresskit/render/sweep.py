"""A sweep as one table: a row for each model and point."""

from __future__ import annotations

from dataclasses import dataclass

from compresskit.render import figures
from compresskit.render.rows import faster
from compresskit.report import AXES, Measurement, Report, points_of


@dataclass(frozen=True)
class Line:
    """One model at one point; ``faster`` compares it with the first model there, None where that can't be told."""

    cells: tuple[str, ...]
    faster: bool | None


def table(report: Report) -> tuple[tuple[str, ...], list[Line]]:
    """The titles and the lines: model, what varies of the point, p50, p99, throughput and speed-up, point by point."""
    where = points_of(report.measurements)
    varied = [axis for axis in range(3) if len({point[axis] for point in where}) > 1]
    found: dict[tuple[object, ...], Measurement] = {}
    for measured in report.measurements:
        found.setdefault((measured.model, measured.name, measured.point), measured)
    lines = []
    for point in where:
        for entry in report.models:
            own = {
                n: found.get((entry.name, n, point)) for n in ("latency_p50", "latency_p99", "throughput", "speedup")
            }
            if own["latency_p50"] is None:
                continue
            value = {name: None if figure is None else figure.value for name, figure in own.items()}
            cells = (
                figures.clean(entry.name),
                *(figures.DASH if point[axis] is None else str(point[axis]) for axis in varied),
                figures.milliseconds(value["latency_p50"]),
                figures.milliseconds(value["latency_p99"]),
                figures.amount(value["throughput"]),
                figures.speedup(own["speedup"]),
            )
            lines.append(Line(cells, faster(own["speedup"])))
    return ("model", *(AXES[axis] for axis in varied), "p50 ms", "p99 ms", "per s", "speedup"), lines
