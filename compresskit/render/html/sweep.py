"""The points of a matrix as one report, so that they are drawn as any set of models is."""

from __future__ import annotations

from collections.abc import Sequence

from compresskit.report import Gate, Report, Verdict

_WORST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNVERIFIED, Verdict.PASS)


def joined(names: Sequence[str], reports: Sequence[Report]) -> Report:
    """One report of all points: their baseline once, and each point's result under the point's name.

    Args:
        names: Of the points.
        reports: Of the same; each holds its result against the one baseline.
    """
    first = reports[0]
    base = first.models[0]
    models = [base]
    measurements = [m for m in first.measurements if m.model == base.name]
    layers = [layer for layer in first.layers if layer.model == base.name]
    gates: list[Gate] = []
    for name, report in zip(names, reports, strict=True):
        # The baseline's name may be a point's.
        shown = name if name != base.name else f"{name} (point)"
        last = report.models[-1].name
        models.append(report.models[-1].model_copy(update={"name": shown}))
        measurements += [m.model_copy(update={"model": shown}) for m in report.measurements if m.model == last]
        layers += [m.model_copy(update={"model": shown}) for m in report.layers if m.model == last]
        gates += [gate.model_copy(update={"name": f"{name}: {gate.name}"}) for gate in report.gates]
    # Medians of different runs are not comparable; each run's ratio to its own baseline is.
    measurements = [m for m in measurements if not m.name.startswith("latency_")]
    return Report(
        command=first.command,
        verdict=next(v for v in _WORST if any(r.verdict is v for r in reports)),
        models=models,
        measurements=measurements,
        layers=layers,
        evaluation=first.evaluation,
        gates=gates,
        notes=[f"{name}: {note}" for name, report in zip(names, reports, strict=True) for note in report.notes],
        environment=first.environment,
    )
