"""How closely a compressed model follows the original, without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compresskit.data.source import Source
from compresskit.errors import InputError
from compresskit.quality import intervals
from compresskit.quality.decibel import decibels
from compresskit.quality.embedding import pool
from compresskit.quality.evaluate import Score
from compresskit.quality.forward import NonFiniteOutput, check_finite, forward
from compresskit.runtimes.base import Session
from compresskit.stage import Progress, silent

_TOKENS = 2048
_POOLED = ("last_hidden_state",)


@dataclass(frozen=True)
class Fidelity:
    """Two models' outputs on the same inputs.

    Attributes:
        cosine: Mean over samples of the cosine between the two outputs, 0 to 1 for models that agree.
        cosine_interval: Its 95 % interval; None below 5 samples.
        worst: The smallest cosine of a sample.
        sqnr: Power of the original's output over that of the error, in dB; at most 200.
        agreement: Share of predictions (classes, or next tokens) that are the same, in %; None for outputs that
            aren't scores.
        agreement_interval: Wilson, 95 %.
        predictions: How many agreement was taken from; 0 for None.
        max_abs: Largest difference of any value.
        n: Samples.
        output: The output that was compared.
    """

    cosine: float
    cosine_interval: tuple[float, float] | None
    worst: float
    sqnr: float
    agreement: float | None
    agreement_interval: tuple[float, float] | None
    predictions: int
    max_abs: float
    n: int
    output: str

    def scores(self) -> list[Score]:
        """The figures as scores: ``cosine``, ``sqnr``, ``max_abs`` and, where there is one, ``agreement``."""
        low, high = self.cosine_interval or (None, None)
        out = [
            Score("cosine", self.cosine, "", self.n, low, high),
            Score("sqnr", self.sqnr, "dB", self.n),
            Score("max_abs", self.max_abs, "", self.n),
        ]
        if self.agreement is not None:
            low, high = self.agreement_interval or (None, None)
            out.append(Score("agreement", self.agreement, "%", self.predictions, low, high))
        return out


@dataclass
class _Sums:
    """What is added up over batches."""

    cosines: list[np.ndarray]
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    same: int = 0
    predictions: int = 0


def compare_outputs(
    original: Session,
    new: Session,
    source: Source,
    *,
    task: str = "unknown",
    batch: int = 64,
    limit: int | None = None,
    progress: Progress = silent,
) -> Fidelity:
    """Run both models on the same samples and compare the output that matters.

    Hidden states ``(n, L, width)`` are pooled over real tokens first; of logits ``(n, L, V)`` only real tokens count.

    Args:
        original: The reference.
        new: The compressed model.
        source: Samples; labels aren't used.
        task: The original's; decides whether outputs are scores (then agreement is counted).
        batch: Samples at once.
        limit: Only the first so many samples.
        progress: Called as ``progress(what, done, total)``.

    Raises:
        NonFiniteOutput: Either gives NaN or Inf; the message says which.
        InputError: The models have no output in common, or of other shapes.
    """
    sums, done, name = _Sums([]), 0, ""
    for piece in source.batches(batch, limit):
        lengths = (int(v.shape[1]) for v in piece.inputs.values() if v.ndim == 2 and v.dtype.kind in "ui")
        rows = max(1, min(2 * batch, _TOKENS // max(1, *lengths, 1)))
        total = len(next(iter(piece.inputs.values())))
        for start in range(0, total, rows):
            part = {k: v[start : start + rows] for k, v in piece.inputs.items()}
            a, b = forward(original, part, rows), forward(new, part, rows)
            name = name or _shared(a, b)
            _add(sums, *_checked(name, a, b), part.get("attention_mask"), _is_scores(name, a[name], task, source))
        done += total
        progress("comparing outputs", done, 0)
    if not sums.cosines:
        raise InputError(f"{source.name} has no samples")
    return _result(sums, name)


def _shared(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str:
    """The output to compare: logits or hidden states by name, else the first of the original's."""
    floats = [n for n in a if a[n].dtype.kind == "f"]
    for name in ("logits", "sentence_embedding", *_POOLED, *floats):
        if name in floats and name in b:
            return name
    raise InputError(
        f"the models have no output in common: {', '.join(a) or 'none'} and {', '.join(b) or 'none'}",
        "compare a model with one made from it",
    )


def _checked(name: str, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if a[name].shape != b[name].shape:
        raise InputError(f"output '{name}' is {a[name].shape} in the original and {b[name].shape} in the new model")
    for which, outputs in (("original", a), ("new model", b)):
        try:
            check_finite(name, outputs[name])
        except NonFiniteOutput as error:
            raise NonFiniteOutput(error.message.replace("the model's", f"the {which}'s", 1), error.hint) from error
    return a[name], b[name]


def _is_scores(name: str, array: np.ndarray, task: str, source: Source) -> bool:
    if task == "embedding" or array.ndim < 2 or array.shape[-1] < 2:
        return False
    if task in ("classification", "causal-lm") or name in ("logits", "probabilities", "scores"):
        return True
    return source.kind == "images" and array.ndim == 2


def _add(sums: _Sums, a: np.ndarray, b: np.ndarray, mask: np.ndarray | None, scores: bool) -> None:
    real = mask if mask is not None and a.ndim >= 3 and mask.shape == a.shape[:2] else None
    if scores:
        equal = a.argmax(axis=-1) == b.argmax(axis=-1)
        chosen = equal if real is None else equal[real != 0]
        sums.same += int(chosen.sum())
        sums.predictions += chosen.size
    elif a.ndim == 3 and real is not None:
        a, b, real = pool(a, real), pool(b, real), None
    weights = None if real is None else (real != 0).reshape(*real.shape, *[1] * (a.ndim - 2))
    for i in range(len(a)):  # a sample at a time: float64 copies of all logits would be large
        x, y = (v[i].astype(np.float64) if weights is None else v[i] * weights[i].astype(np.float64) for v in (a, b))
        error = np.abs(x - y)
        own, other, noise = float((x * x).sum()), float((y * y).sum()), float((error * error).sum())
        sums.cosines.append(np.array([_cosine(float((x * y).sum()), own, other)]))
        sums.signal += own
        sums.noise += noise
        sums.largest = max(sums.largest, float(error.max(initial=0.0)))


def _cosine(dot: float, own: float, other: float) -> float:
    if own == 0 or other == 0:
        return 1.0 if own == other else 0.0
    return min(1.0, dot / math.sqrt(own * other))


def _result(sums: _Sums, name: str) -> Fidelity:
    cosines = np.concatenate(sums.cosines)
    return Fidelity(
        cosine=float(cosines.mean()),
        cosine_interval=intervals.mean(cosines),
        worst=float(cosines.min()),
        sqnr=decibels(sums.signal, sums.noise),
        agreement=100 * sums.same / sums.predictions if sums.predictions else None,
        agreement_interval=_percent(intervals.wilson(sums.same, sums.predictions)) if sums.predictions else None,
        predictions=sums.predictions,
        max_abs=sums.largest,
        n=len(cosines),
        output=name,
    )


def _percent(interval: tuple[float, float]) -> tuple[float, float]:
    return 100 * interval[0], 100 * interval[1]
