"""The metrics by name, and which one a model and its data call for.

A metric turns each batch into a few numbers a sample and those numbers into one figure. The numbers are kept, so an
interval and the comparison of two models on the same samples need no second pass.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, ClassVar

import numpy as np

from compresskit.data.source import Batch, Source
from compresskit.data.usercode import failure, is_reference, load_object
from compresskit.errors import CompressKitError, InputError, UsageError
from compresskit.quality import intervals
from compresskit.quality.embedding import pool, rank_correlation
from compresskit.quality.forward import check_finite, output
from compresskit.quality.intervals import Interval
from compresskit.quality.language import sequence_loss


class Metric(ABC):
    """One figure of quality.

    Attributes:
        name: As in `metric` and the report.
        unit: ``%``, or empty.
        higher_is_better: Which way it is better.
        tokens: Most tokens in one pass; None where outputs are small.
    """

    name: str
    unit: str
    higher_is_better: bool = True
    tokens: ClassVar[int | None] = None

    @abstractmethod
    def check(self, source: Source) -> None:
        """Refuse data on which this can't be computed.

        Raises:
            UsageError: Says what the metric needs and what the data is.
        """

    @abstractmethod
    def samples(self, outputs: dict[str, np.ndarray], batch: Batch) -> np.ndarray:
        """Numbers of each sample, ``(n, k)`` ``float64``.

        Raises:
            InputError: The outputs or labels don't fit the metric; NaN or Inf among the outputs.
        """

    @abstractmethod
    def value(self, samples: np.ndarray) -> float:
        """The figure, from the samples of all batches."""

    @abstractmethod
    def interval(self, samples: np.ndarray) -> Interval | None:
        """The figure's 95 % interval; None where the samples are too few."""

    @abstractmethod
    def change(self, before: np.ndarray, after: np.ndarray) -> Interval | None:
        """95 % interval of ``value(after) - value(before)`` for two models on the same samples."""


def _needs(metric: Metric, needs: str, source: Source) -> UsageError:
    labels = "with" if source.labelled else "without"
    return UsageError(
        f"{metric.name} needs {needs}; {source.name} is {source.kind} {labels} labels",
        f"choose another `metric` ({', '.join(METRICS)} or FILE.py:NAME) or other data",
    )


class Share(Metric):
    """A share of samples, in %: each counts 1 or 0."""

    unit = "%"

    def value(self, samples: np.ndarray) -> float:
        """In %."""
        return 100.0 * float(samples.mean())

    def interval(self, samples: np.ndarray) -> Interval | None:
        """Wilson."""
        low, high = intervals.wilson(float(samples.sum()), len(samples))
        return 100 * low, 100 * high

    def change(self, before: np.ndarray, after: np.ndarray) -> Interval | None:
        """Agresti-Min, from the samples on which the two disagree."""
        gained, lost = int((after > before).sum()), int((after < before).sum())
        low, high = intervals.paired_proportions(gained, lost, len(before))
        return 100 * low, 100 * high


class Accuracy(Share):
    """Share of samples whose label is among the ``k`` largest outputs.

    Of equal outputs the lower class comes first, as in argmax: a model whose outputs are all equal scores by chance.
    """

    def __init__(self, k: int = 1) -> None:
        self.k, self.name = k, "accuracy" if k == 1 else f"top{k}"

    def check(self, source: Source) -> None:
        """Labels that are classes."""
        if not source.labelled or source.kind in ("pairs", "choices"):
            raise _needs(self, "samples with class labels (y or labels)", source)

    def samples(self, outputs: dict[str, np.ndarray], batch: Batch) -> np.ndarray:
        """1 for a hit, 0 for a miss, ``(n, 1)``."""
        logits = output(outputs, ("logits",), (2,), "scores of classes (n, classes)")
        labels = batch.targets
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            found = "none" if labels is None else f"{labels.dtype} {labels.shape}"
            raise InputError(f"{self.name} expects one integer label a sample, found {found}")
        classes = logits.shape[1]
        if classes <= self.k:
            raise InputError(f"{self.name} needs more than {self.k} classes, the model gives {classes}")
        if labels.min() < 0 or labels.max() >= classes:
            bad = labels.min() if labels.min() < 0 else labels.max()
            raise InputError(
                f"label {bad} is not a class of the model, which gives {classes} scores (0 to {classes - 1})"
            )
        if self.k == 1:
            hits: np.ndarray = logits.argmax(axis=1) == labels
            return hits[:, None].astype(np.float64)
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        earlier = np.arange(classes)[None, :] < labels[:, None]
        ahead: np.ndarray = (logits > own).sum(axis=1) + ((logits == own) & earlier).sum(axis=1)
        return (ahead < self.k)[:, None].astype(np.float64)


class ChoiceAccuracy(Share):
    """Share of questions whose right choice has the largest log-likelihood; of equal ones the first counts.

    Args:
        normalized: The log-likelihood is divided by the choice's length in characters. These are ``acc`` and
            ``acc_norm`` of lm-evaluation-harness.
    """

    tokens = 2048

    def __init__(self, *, normalized: bool = False) -> None:
        self._normalized, self.name = normalized, "choice_accuracy_norm" if normalized else "choice_accuracy"

    def check(self, source: Source) -> None:
        """Questions with choices."""
        if source.kind != "choices":
            raise _needs(self, "a causal language model and a .jsonl with context, choices and answer", source)

    def samples(self, outputs: dict[str, np.ndarray], batch: Batch) -> np.ndarray:
        """1 for a hit, 0 for a miss, ``(questions, 1)``."""
        logits = output(outputs, ("logits",), (3,), "logits (n, tokens, vocabulary)")
        ids = batch.inputs.get("input_ids", next(iter(batch.inputs.values())))
        loss = sequence_loss(logits, ids, batch.inputs.get("attention_mask"), batch.scored)[:, 0]
        questions = np.zeros((0, 3), np.int64) if batch.targets is None else batch.targets
        if self._normalized:
            loss = loss / questions[:, 2]
        starts = np.flatnonzero(np.diff(questions[:, 0], prepend=-1))
        rows = zip(np.split(loss, starts[1:]), np.split(questions[:, 1], starts[1:]), strict=True)
        return np.array([[float(right[of.argmin()])] for of, right in rows])


class Perplexity(Metric):
    """``exp`` of the mean loss of the next token; padding isn't counted. A sample gives its loss and its tokens."""

    name, unit, higher_is_better = "perplexity", "", False
    tokens = 2048

    def check(self, source: Source) -> None:
        """Token ids."""
        if source.kind != "tokens":
            raise _needs(self, "a causal language model and token ids (text, or input_ids)", source)

    def samples(self, outputs: dict[str, np.ndarray], batch: Batch) -> np.ndarray:
        """Summed loss in nats and number of predicted tokens, ``(n, 2)``."""
        logits = output(outputs, ("logits",), (3,), "logits (n, tokens, vocabulary)")
        ids = batch.inputs.get("input_ids", next(iter(batch.inputs.values())))
        return sequence_loss(logits, ids, batch.inputs.get("attention_mask"), batch.scored)

    def value(self, samples: np.ndarray) -> float:
        """At most ``exp(700)``; NaN without a predicted token."""
        loss, tokens = samples.sum(axis=0)
        return math.exp(min(loss / tokens, 700.0)) if tokens else math.nan

    def interval(self, samples: np.ndarray) -> Interval | None:
        """Delta method on the mean loss, over sequences."""
        if not samples[:, 1].any():
            return None
        spread = intervals.mean(intervals.ratio_residuals(samples[:, 0], samples[:, 1]))
        value = self.value(samples)
        return None if spread is None else (value * math.exp(spread[0]), value * math.exp(spread[1]))

    def change(self, before: np.ndarray, after: np.ndarray) -> Interval | None:
        """Delta method on the difference of the mean losses; the first model's perplexity is taken as it is."""
        if not before[:, 1].any():
            return None
        residuals = [intervals.ratio_residuals(s[:, 0], s[:, 1]) for s in (before, after)]
        spread = intervals.mean(residuals[1] - residuals[0])
        base, value = self.value(before), self.value(after)
        if spread is None:
            return None
        # The mean residual is 0: the interval lies around the new figure, and the baseline's is taken off.
        return value * math.exp(spread[0]) - base, value * math.exp(spread[1]) - base


class Spearman(Metric):
    """Rank correlation × 100 of the cosine of sentence pairs with their scores. A sample gives cosine and score."""

    name, unit = "spearman", ""

    def check(self, source: Source) -> None:
        """Scored sentence pairs."""
        if source.kind != "pairs":
            raise _needs(self, "scored sentence pairs (sentence1, sentence2, score)", source)

    def samples(self, outputs: dict[str, np.ndarray], batch: Batch) -> np.ndarray:
        """Cosine and given score of each pair, ``(n, 2)``."""
        wanted = ("sentence_embedding", "last_hidden_state")
        hidden = output(outputs, wanted, (2, 3), "embeddings (n, width) or (n, tokens, width)")
        vectors = pool(hidden, batch.inputs.get("attention_mask"))
        a, b = vectors[0::2], vectors[1::2]
        norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 0)
        targets = batch.targets if batch.targets is not None else np.zeros(len(a))
        return np.stack([cosine, targets], axis=1)

    def value(self, samples: np.ndarray) -> float:
        """×100; NaN when all cosines or all scores are equal."""
        return 100 * rank_correlation(samples[:, 0], samples[:, 1])

    def interval(self, samples: np.ndarray) -> Interval | None:
        """Bootstrap over pairs."""
        return intervals.bootstrap(lambda i: self.value(samples[i]), len(samples), _rounds(len(samples)))

    def change(self, before: np.ndarray, after: np.ndarray) -> Interval | None:
        """Bootstrap over pairs, both models on the same ones."""
        return intervals.bootstrap(
            lambda i: self.value(after[i]) - self.value(before[i]), len(before), _rounds(len(before))
        )


def _rounds(n: int) -> int:
    """As many bootstrap rounds as take a second or two, at least 200."""
    return max(200, min(1000, 2_000_000 // n))


class Custom(Metric):
    """The mean over samples of a user's function: ``score(outputs, batch) -> (n,)``.

    ``outputs`` are arrays by output name, ``batch`` has ``inputs`` (arrays by name) and ``targets``. It returns one
    number a sample. Attributes of the function may say ``higher_is_better = False`` and ``unit = "dB"``.
    """

    tokens = 2048

    def __init__(self, reference: str, function: Callable[[dict[str, np.ndarray], Batch], Any]) -> None:
        self.reference, self.name = reference, reference.rpartition(":")[2]
        self.higher_is_better = bool(getattr(function, "higher_is_better", True))
        self.unit = str(getattr(function, "unit", ""))
        self._function = function

    def check(self, source: Source) -> None:
        """Nothing: what the function needs, it must check itself."""

    def samples(self, outputs: dict[str, np.ndarray], batch: Batch) -> np.ndarray:
        """What the user's function gives, ``(n, 1)``."""
        for name, array in outputs.items():
            check_finite(name, array)
        n = len(batch.targets) if batch.targets is not None else len(next(iter(batch.inputs.values())))
        try:
            with redirect_stdout(sys.stderr):
                scores = np.asarray(self._function(outputs, batch), np.float64)
        except CompressKitError:
            raise
        except Exception as error:
            raise failure(self.reference, error) from error
        if scores.shape != (n,):
            raise InputError(f"{self.reference} should return one number a sample, ({n},); found {scores.shape}")
        if not np.isfinite(scores).all():
            raise InputError(f"{self.reference} returned NaN or Inf")
        return scores[:, None]

    def value(self, samples: np.ndarray) -> float:
        """The mean."""
        return float(samples.mean())

    def interval(self, samples: np.ndarray) -> Interval | None:
        """Student's, of the mean."""
        return intervals.mean(samples[:, 0])

    def change(self, before: np.ndarray, after: np.ndarray) -> Interval | None:
        """Student's, of the mean of the differences."""
        return intervals.mean(after[:, 0] - before[:, 0])


METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "top5": lambda: Accuracy(5),
    "perplexity": Perplexity,
    "spearman": Spearman,
    "choice_accuracy": ChoiceAccuracy,
    "choice_accuracy_norm": lambda: ChoiceAccuracy(normalized=True),
}


def open_metric(spec: str, *, allow_code: bool = True) -> Metric:
    """A metric by name, or the user's own as ``FILE.py:NAME`` (see :class:`Custom`).

    Raises:
        UsageError: No such metric, or code where it isn't allowed.
        InputError: The user's file is missing, fails, or names something that can't be called.
    """
    if is_reference(spec):
        function = load_object(spec, "`metric`", allow_code=allow_code)
        if not callable(function):
            raise InputError(f"{spec} is not a function, found {type(function).__name__}")
        return Custom(spec, function)
    if spec not in METRICS:
        raise UsageError(f"there is no metric '{spec}'", f"choose {', '.join(METRICS)} or FILE.py:NAME")
    return METRICS[spec]()


def pick(source: Source, outputs: tuple[str, ...], task: str = "unknown") -> Metric | None:
    """The metric that a model and its data call for; None when only fidelity can be measured.

    Args:
        source: The data.
        outputs: The model's output names.
        task: From the model's card.
    """
    if source.kind == "pairs":
        return Spearman()
    if source.kind == "choices":
        return ChoiceAccuracy() if task == "causal-lm" or "logits" in outputs else None
    if source.labelled and task in ("classification", "unknown"):
        return Accuracy()
    if source.kind == "tokens" and (task == "causal-lm" or (task == "unknown" and "logits" in outputs)):
        return Perplexity()
    return None
