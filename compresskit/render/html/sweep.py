"""The points of a matrix as one report, so that they are drawn as any set of models is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from compresskit.report import LayerEntry, Measurement, Report, Verdict

T = TypeVar("T", Measurement, LayerEntry)
_WORST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNVERIFIED, Verdict.PASS)


def joined(names: Sequence[str], reports: Sequence[Report]) -> Report:
    """One report of all points: their baseline once, and each point's result under the point's name.

    Args:
        names: Of the points.
        reports: Of the same; each holds its result against the one baseline.
    """
    first = reports[0]
    base = first.models[0]
    models, figures, layers, gates = [base], _of(first.measurements, base.name), _of(first.layers, base.name), []
    drops: dict[str, tuple[float, float]] = {}
    for name, report in zip(names, reports, strict=True):
        # The baseline's name may be a point's.
        shown = name if name != base.name else f"{name} (point)"
        last = report.models[-1]
        models.append(last.model_copy(update={"name": shown}))
        figures += _of(report.measurements, last.name, shown)
        if report.evaluation is not None and last.name in report.evaluation.drops:
            drops[shown] = report.evaluation.drops[last.name]
        layers += _of(report.layers, last.name, shown)
        gates += [gate.model_copy(update={"name": f"{name}: {gate.name}"}) for gate in report.gates]
    # Medians of different runs are not comparable; each run's ratio to its own baseline is.
    measurements = [m for m in figures if not m.name.startswith("latency_")]
    return Report(
        command=first.command,
        verdict=next(v for v in _WORST if any(r.verdict is v for r in reports)),
        models=models,
        measurements=measurements,
        layers=layers,
        evaluation=None if first.evaluation is None else first.evaluation.model_copy(update={"drops": drops}),
        gates=gates,
        notes=[f"{name}: {note}" for name, report in zip(names, reports, strict=True) for note in report.notes],
        environment=first.environment,
    )


def _of(found: Sequence[T], model: str, shown: str | None = None) -> list[T]:
    """What is of a model, under another name for it."""
    return [part.model_copy(update={"model": shown or model}) for part in found if part.model == model]
