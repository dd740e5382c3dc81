"""Quality of models against the first of them, as lines of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from compresskit.data.source import Source, notes_of
from compresskit.quality.evaluate import Difference, Score, evaluate_all, paired
from compresskit.quality.fidelity import compare_outputs
from compresskit.quality.forward import NonFiniteOutput, forward
from compresskit.quality.metrics import Metric, open_metric, pick
from compresskit.report import Evaluation, Measurement
from compresskit.runner.candidate import Candidate
from compresskit.runner.likeness import MOST, LikenessData, evaluation_samples, made_up_samples
from compresskit.runtimes.base import Session
from compresskit.stage import Progress, silent


@dataclass
class Quality:
    """What was measured of some models on the same data.

    Attributes:
        metric: What was measured; None where only fidelity could be.
        scores: By model; empty without a metric.
        drops: How much worse each model but the first is.
        measurements: All of it, for the report.
        broken: Models whose outputs aren't finite, with what was found; nothing else is known of them.
        notes: What a reader must know: what fidelity was measured on.
        data: Fingerprint of the samples; empty without a metric.
    """

    metric: Metric | None = None
    scores: dict[str, Score] = field(default_factory=dict)
    drops: dict[str, Difference] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    data: str = ""

    def evaluation(self) -> Evaluation | None:
        """What the report keeps of it besides the figures; None without a metric."""
        if self.metric is None or not self.scores:
            return None
        drops = {name: drop.interval for name, drop in self.drops.items() if drop.interval is not None}
        drops = {name: (low, high) for name, (low, high) in drops.items() if math.isfinite(low + high)}
        return Evaluation(
            metric=self.metric.name, higher_is_better=self.metric.higher_is_better, data=self.data, drops=drops
        )


def quality(
    models: Sequence[Candidate],
    source: Source | None,
    metric: str | None,
    *,
    likeness: LikenessData | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Quality:
    """Measure the metric of each model, and how closely each follows the first.

    Args:
        models: The baseline first.
        source: Evaluation data; without it there is fidelity alone.
        metric: Name or ``FILE.py:NAME``; None picks what data and task call for.
        likeness: What fidelity is measured on without evaluation data; None is random inputs.
        seed: Seed of the random inputs.
        progress: Called after each batch.

    Raises:
        NonFiniteOutput: The first model is broken.
        InputError: Data and model don't fit.
        UsageError: The metric can't be computed on this data.
    """
    found = Quality(notes=list(notes_of(source)))
    original = models[0].open()
    if source is not None:
        found.metric = open_metric(metric) if metric else pick(source, original.outputs, models[0].task)
    if source is not None:
        likeness = evaluation_samples(source)
    elif likeness is None and len(models) > 1:
        likeness = made_up_samples(models[0], original, seed)
    for model in models:
        # One session at a time beside the original's: memory of two models, whatever their number.
        session = original if model is models[0] else model.open()
        found.notes += [note for note in getattr(session, "notes", ()) if note not in found.notes]
        try:
            _measure(found, session, model, models[0], source, progress)
            if session is not original and likeness is not None:
                found.measurements += _fidelity(original, session, models[0], model, likeness.source, progress)
        except NonFiniteOutput as error:
            if session is original:
                raise
            found.broken[model.name] = error.message
    if source is not None and found.metric is not None:
        found.data = source.fingerprint()
    if len(models) > 1 and likeness is not None:
        found.notes.append(f"cosine, SQNR and agreement compare the outputs with the original's on {likeness.about}")
    return found


def _measure(
    found: Quality,
    session: Session,
    model: Candidate,
    baseline: Candidate,
    source: Source | None,
    progress: Progress,
) -> None:
    if source is None or found.metric is None:
        return
    metrics = [found.metric]
    if found.metric.name == "accuracy" and _classes(session, source) > 5:
        metrics.append(open_metric("top5"))
    if found.metric.name == "choice_accuracy":
        metrics.append(open_metric("choice_accuracy_norm"))
    scores = evaluate_all(session, source, metrics, progress=progress)
    found.measurements += [score.measurement(model.name, model.runtime) for score in scores]
    found.scores[model.name] = scores[0]
    if model is not baseline:
        found.drops[model.name] = paired(found.metric, found.scores[baseline.name], scores[0])


def score(
    model: Candidate, source: Source, metric: str | None, *, progress: Progress = silent
) -> tuple[Metric | None, Score | None]:
    """The metric of one model alone; None for both where none suits the data.

    Args:
        model: What is run.
        source: Evaluation data.
        metric: Name or ``FILE.py:NAME``; None picks what data and task call for.
        progress: Called after each batch.

    Raises:
        NonFiniteOutput: The model is broken.
    """
    session = model.open()
    chosen = open_metric(metric) if metric else pick(source, session.outputs, model.task)
    return chosen, None if chosen is None else evaluate_all(session, source, [chosen], progress=progress)[0]


def _classes(session: Session, source: Source) -> int:
    """Number of classes the model tells apart, from its first output on one sample."""
    sample = next(iter(source.batches(1, 1)))
    return next((v.shape[1] for v in forward(session, sample.inputs, 1).values() if v.ndim == 2), 0)


def _fidelity(
    original: Session,
    new: Session,
    baseline: Candidate,
    model: Candidate,
    source: Source,
    progress: Progress,
) -> list[Measurement]:
    compared = compare_outputs(original, new, source, task=baseline.task, limit=MOST, progress=progress)
    return [score.measurement(model.name, model.runtime) for score in compared.scores()]
