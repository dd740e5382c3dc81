"""A metric of a model on data, with its interval, and the difference between two models on the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from compresskit.data.source import Batch, Source
from compresskit.errors import InputError, UsageError
from compresskit.quality.forward import NonFiniteOutput, forward
from compresskit.quality.metrics import Metric
from compresskit.report import Measurement
from compresskit.runtimes.base import Session
from compresskit.stage import Progress, silent


@dataclass(frozen=True)
class Score:
    """One figure of one model.

    Attributes:
        metric: Its name.
        value: In ``unit``.
        unit: ``%``, ``dB`` or empty.
        n: Samples it was taken from.
        low: Lower end of the 95 % interval, None where unknown.
        high: Upper end.
        samples: Numbers of each sample, ``(n, k)``; what :func:`paired` compares.
    """

    metric: str
    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    samples: np.ndarray | None = field(default=None, repr=False, compare=False)

    def measurement(self, model: str, runtime: str = "", batch: int | None = None) -> Measurement:
        """The figure as a line of the report."""
        return Measurement(
            model=model,
            name=self.metric,
            value=self.value,
            unit=self.unit,
            n=self.n,
            low=self.low,
            high=self.high,
            runtime=runtime,
            batch=batch,
        )


@dataclass(frozen=True)
class Difference:
    """How much worse the second model is, in the metric's points; negative when it is better.

    Attributes:
        drop: Baseline to new, positive is worse whichever way the metric is better.
        interval: 95 %, from the samples of both; None where they are too few.
    """

    drop: float
    interval: tuple[float, float] | None


def evaluate(
    session: Session,
    source: Source,
    metric: Metric,
    *,
    batch: int = 64,
    limit: int | None = None,
    progress: Progress = silent,
) -> Score:
    """Measure a model, batch by batch.

    Args:
        session: The model, ready to run.
        source: Samples, in the same order at each walk.
        metric: See :mod:`compresskit.quality.metrics`.
        batch: Samples at once; fewer where the outputs of long sequences would fill the memory.
        limit: Only the first so many samples.
        progress: Called as ``progress(what, done, total)``; total is 0 while it isn't known.

    Raises:
        UsageError: The metric can't be computed on this data.
        NonFiniteOutput: The model gives NaN or Inf, or the same for every sample where that leaves nothing to rank.
        InputError: Data and model don't fit each other.
    """
    return evaluate_all(session, source, [metric], batch=batch, limit=limit, progress=progress)[0]


def evaluate_all(
    session: Session,
    source: Source,
    metrics: Sequence[Metric],
    *,
    batch: int = 64,
    limit: int | None = None,
    progress: Progress = silent,
) -> list[Score]:
    """Several metrics in one pass over the data; see :func:`evaluate`."""
    for metric in metrics:
        metric.check(source)
    total = _total(source, limit)
    parts: list[list[np.ndarray]] = [[] for _ in metrics]
    done = 0
    for piece in source.batches(batch, limit):
        rows = min(_rows_at_once(metric, piece, batch) for metric in metrics)
        for part in _slices(piece, rows, source.kind):
            outputs = forward(session, part.inputs, 2 * rows)
            for metric, found in zip(metrics, parts, strict=True):
                found.append(metric.samples(outputs, part))
            done += len(parts[0][-1])
        progress(f"measuring {metrics[0].name}", done, total)
    if not parts[0]:
        raise InputError(f"{source.name} has no samples")
    return [score(metric, np.concatenate(found)) for metric, found in zip(metrics, parts, strict=True)]


def score(metric: Metric, samples: np.ndarray) -> Score:
    """The figure and its interval from the numbers of all samples.

    Raises:
        NonFiniteOutput: They leave the figure undefined.
    """
    value = metric.value(samples)
    if not math.isfinite(value):
        raise NonFiniteOutput(
            f"{metric.name} is undefined on these {len(samples)} samples: the model or the data gives but one value",
            "check that the data is what the model expects",
        )
    low, high = metric.interval(samples) or (None, None)
    return Score(metric.name, value, metric.unit, len(samples), low, high, samples)


def paired(metric: Metric, baseline: Score, new: Score) -> Difference:
    """Compare two scores on the same samples; far sharper than two intervals side by side.

    Raises:
        UsageError: The scores are of other samples or another metric.
    """
    a, b = baseline.samples, new.samples
    if a is None or b is None or a.shape != b.shape or baseline.metric != new.metric:
        raise UsageError(
            f"{baseline.metric} on {baseline.n} samples can't be compared with {new.metric} on {new.n} samples",
            "measure both models with the same metric, data and limit",
        )
    change = metric.change(a, b)
    if metric.higher_is_better:
        return Difference(baseline.value - new.value, None if change is None else (-change[1], -change[0]))
    return Difference(new.value - baseline.value, change)


def _total(source: Source, limit: int | None) -> int:
    """Samples to come; 0 when counting them would mean walking the user's code once more."""
    if not getattr(source, "counted", True):
        return limit or 0
    return len(source) if limit is None else min(limit, len(source))


def _rows_at_once(metric: Metric, batch: Batch, size: int) -> int:
    if metric.tokens is None:
        return size
    length = max((int(v.shape[1]) for v in batch.inputs.values() if v.ndim == 2 and v.dtype.kind in "ui"), default=1)
    return max(1, min(size, metric.tokens // max(1, length)))


def _slices(batch: Batch, rows: int, kind: str) -> list[Batch]:
    n = len(next(iter(batch.inputs.values())))
    if kind == "pairs" or n <= rows:
        return [batch]
    starts = list(range(0, n, rows))
    if kind == "choices" and batch.targets is not None:  # a question's choices stay together
        starts = _questions_at_once(np.flatnonzero(np.diff(batch.targets[:, 0], prepend=-1)), n, rows)
    return [_cut(batch, slice(start, end)) for start, end in zip(starts, [*starts[1:], n], strict=True)]


def _questions_at_once(starts: np.ndarray, n: int, rows: int) -> list[int]:
    """Where parts begin that hold whole questions, as many as fit into some rows, but at least one."""
    found: list[int] = []
    for start, end in pairwise([*starts.tolist(), n]):
        if not found or end - found[-1] > rows:
            found.append(start)
    return found


def _cut(batch: Batch, span: slice) -> Batch:
    return replace(
        batch,
        inputs={k: v[span] for k, v in batch.inputs.items()},
        targets=None if batch.targets is None else batch.targets[span],
        scored=None if batch.scored is None else batch.scored[span],
    )
