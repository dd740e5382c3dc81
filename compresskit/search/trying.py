"""Candidates tried: their steps taken through the step cache, then size, quality and a short look at the speed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.benchmark.feeds import make_feeds
from compresskit.data.checked import checked
from compresskit.errors import UsageError
from compresskit.quality.drop import parse_drop
from compresskit.quality.evaluate import Score, paired
from compresskit.quality.fidelity import compare_outputs
from compresskit.quality.metrics import Metric
from compresskit.recipe.limits import DEFAULT_DROP, Limits
from compresskit.recipe.plan import Recipe, Step
from compresskit.recipe.reading import parse_recipe
from compresskit.runner.cache import Cache
from compresskit.runner.cached_steps import Cached, read_model
from compresskit.runner.entries import At, bytes_of
from compresskit.runner.judging import Measuring
from compresskit.runner.measure import score
from compresskit.runner.prepare import with_inputs, with_usage
from compresskit.runner.sources import opener, parted
from compresskit.runner.steps import Job
from compresskit.search.sizes import inventory_of, least_bytes
from compresskit.stage import Progress

if TYPE_CHECKING:
    from compresskit.data.source import Source
    from compresskit.runtimes.base import Session

_LIKENESS = 512
"""Samples on which outputs are compared with the original's where there is no metric."""
_ROUNDS, _ROUND_S = 7, 0.03
_TIMED, _ALL_S = (8, 64), 0.25
"""Samples on which a model is timed that takes more or less time from one to the next: so many, in about that time."""
Feeds = dict[str, Any]


class OutOfTime(BaseException):
    """The time that the user gave is over; not an error, so that nothing on the way takes it for one."""


@dataclass(frozen=True)
class Figures:
    """What was measured of a candidate.

    Attributes:
        bytes: What ships.
        faster: The original's time of a call over its own; None where nothing is timed.
        value: The metric, or similarity to the original in %.
        drop: How much worse than the original.
        interval: 95 % of the drop.
    """

    bytes: int
    faster: float | None
    value: float
    drop: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Look:
    """What candidates are tried with.

    Attributes:
        recipe: With model and data and without steps.
        limits: The bars.
        select_data: Where the choice is made by other samples than those held out of the recipe's data.
        timing: Time each candidate.
    """

    recipe: Recipe
    limits: Limits
    select_data: str | None = None
    timing: bool = True


class Trying:
    """Tries candidates of one model.

    Attributes:
        base: Figures of the original.
        metric: What is measured; None where only similarity to the original is.
        samples: How many the choice is made by.
        seconds_to_score: That the metric of the original took on them.
    """

    def __init__(self, look: Look, cache: Cache, progress: Progress, work: Path) -> None:
        """Read model and data, and measure the original.

        Args:
            look: What candidates are tried with.
            cache: Where their steps are kept.
            progress: Called now and then; may raise :class:`OutOfTime`.
            work: A folder for temporary files.

        Raises:
            InputError: Model and data don't fit.
            UsageError: There is no sample to choose by.
        """
        recipe, self._look, self._work = look.recipe, look, work
        model = read_model(recipe, Path(recipe.model or ""))
        open_ = opener(
            model, recipe.normalize, recipe.sequence, paths=[recipe.data, look.select_data, recipe.eval_data]
        )
        self.data, held = parted(open_(recipe.data), recipe)
        chosen_by = open_(look.select_data) or held
        if chosen_by is None:
            raise UsageError("there is no sample for selection", "give `data`, or `select_data`")
        self.select: Source = chosen_by
        measuring = Measuring(
            metric=recipe.metric, sequence=recipe.sequence, threads=recipe.threads, device=recipe.device,
            seed=recipe.seed,
        )  # fmt: skip
        model = with_inputs(model, self.data if self.data is not None else self.select)
        # As a run of the winner's recipe knows it: its steps are those in the cache then, and its bytes the same.
        model = with_usage(model, open_(recipe.eval_data), self.data)
        self.model = model
        self._inventory = inventory_of(model) if look.limits.max_bytes is not None else None
        self._job = Job((), work / "none", self.data, measuring, progress=progress)
        self._steps = Cached(model, self._job, recipe, cache)
        self._cache = cache
        self._original = self._candidate(self._steps.first)
        self._session = self._original.open()
        start = time.perf_counter()
        self.metric, self._score = self._scored(self._steps.first)
        self.seconds_to_score = time.perf_counter() - start
        self.samples = len(self.select) if self._score is None else self._score.n
        self._feeds = make_feeds(self._session.inputs, {"batch": 1, "sequence": recipe.sequence}, recipe.seed)
        value = 100.0 if self._score is None else self._score.value
        self.base = Figures(bytes_of(self._steps.first.ready), 1.0, value, 0.0, None)

    def allowed(self) -> float | None:
        """The largest drop that passes, in points of the metric; None where there is no metric to hold a bar to."""
        if self._score is None:
            return None
        return parse_drop(self._look.limits.max_drop or DEFAULT_DROP).points(self._score.value)

    def recipe(self, steps: Sequence[Mapping[str, Any]]) -> Recipe:
        """The recipe of some steps, checked.

        Raises:
            RecipeError: They don't fit each other or the model.
        """
        whole = self._look.recipe
        # What a document names is cut to fit any machine: here it is as the user typed it.
        named = {
            "model": whole.model, "arch": whole.arch, "data": whole.data, "eval-data": whole.eval_data,
            "metric": whole.metric,
        }  # fmt: skip
        head = {key: value for key, value in whole.document().items() if key not in ("steps", "checks", *named)}
        typed = {key: value for key, value in named.items() if value is not None}
        return parse_recipe({**head, "steps": list(steps)}, "candidate", overrides=typed, allow_code=True)

    def take(self, recipe: Recipe) -> tuple[At, tuple[Step, ...]]:
        """Take the steps of a recipe; a stage that chooses among others is replaced by its choice.

        Returns:
            (where they lead, the steps with explicit options).
        """
        now = self._steps.first
        steps: list[Step] = []
        for step in recipe.steps:
            for stage in self._steps.chosen(step.stage, now, self._work):
                now = self._steps.take(len(steps), stage, now)
                steps.append(replace(step, stage=stage))
        return now, tuple(steps)

    def measure(self, at: At) -> Figures:
        """Size, quality and speed of where some steps lead."""
        size = bytes_of(at.ready)
        candidate = self._candidate(at)
        session = candidate.open()
        faster = self._faster(session, self._samples if candidate.varies else [self._feeds])
        if self.metric is None or self._score is None:
            found = compare_outputs(
                self._session, session, self.select, task=self.model.card.task, limit=_LIKENESS,
                progress=self._job.progress,
            )  # fmt: skip
            value = found.agreement if found.agreement is not None else 100 * found.cosine
            return Figures(size, faster, value, 100.0 - value, None)
        _, new = self._scored(at)
        if new is None:
            raise TypeError("what has a metric once has it always")
        change = paired(self.metric, self._score, new)
        return Figures(size, faster, new.value, change.drop, change.interval)

    def least_bytes(self, steps: Sequence[Mapping[str, Any]]) -> int:
        """Bytes that a candidate takes at least, known before anything is computed; 0 where that isn't known."""
        return 0 if self._inventory is None else least_bytes(self._inventory, steps)

    def report_to(self, progress: Progress) -> None:
        """Call another function from here on; one that knows no time limit lets all be done whole."""
        self._job = replace(self._job, progress=progress)
        self._steps.progress(progress)

    def original_candidate(self, name: str) -> Any:
        """The original, to be measured."""
        return self._steps.first.ready.candidate(name, name, self._job.measuring)

    def evaluation(self) -> Source | None:
        """The evaluation data."""
        recipe = self._look.recipe
        return opener(self.model, recipe.normalize, recipe.sequence, paths=[recipe.data])(recipe.eval_data)

    @cached_property
    def seconds_a_call(self) -> float:
        """What a call of the original takes with one sample."""
        calls = _calls(self._session, [self._feeds])
        return _timed(self._session, [self._feeds], calls)

    @cached_property
    def seconds_a_pass(self) -> dict[str, float]:
        """A rough guess of what one epoch of training takes, by precision; empty where nothing can be trained.

        Four forward passes' time for each sample: forward and backward, and the teacher.
        """
        from compresskit.stages.batches import batches_of, forward_of

        if self.data is None or isinstance(self.model.body, Path):
            return {}
        import torch

        batch = batches_of(self.data, self.model.card.inputs, 64, 64)[0]
        forward = forward_of(self.model.module.eval(), self.model.card.inputs)
        rows = max(1, len(next(iter(batch.values()))))
        took: dict[str, list[float]] = {"float32": [], "bfloat16": []}
        with torch.no_grad():
            for _ in range(4):
                for precision, times in took.items():
                    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                        start = time.perf_counter()
                        forward(self.model.module, batch)
                        times.append(time.perf_counter() - start)
        return {precision: 4.0 * min(times) / rows * len(self.data) for precision, times in took.items()}

    def _candidate(self, at: At) -> Any:
        measuring = self._job.measuring
        return at.ready.candidate("candidate", "candidate", replace(measuring, target=at.target))

    def _scored(self, at: At) -> tuple[Metric | None, Score | None]:
        return score(self._candidate(at), self.select, self._job.measuring.metric, progress=self._job.progress)

    def _faster(self, session: Session, feeds: Sequence[Feeds]) -> float | None:
        return faster(self._session, session, feeds) if self._look.timing else None

    @cached_property
    def _samples(self) -> list[Feeds]:
        """What a model is timed on that takes more or less time from sample to sample."""
        if any(spec.batch_axis != 0 for spec in self._session.inputs):
            return [self._feeds]
        count = max(_TIMED[0], min(_TIMED[1], int(_ALL_S / self.seconds_a_call)))
        parts = self.select.batches(1, min(count, len(self.select)))
        return [checked(part, self.select.name, self._session.inputs) for part in parts]


def faster(original: Session, new: Session, feeds: Sequence[Feeds], rounds: int = _ROUNDS) -> float:
    """How many times as fast a model is: the two take turns in this process. To rank by, not to report.

    Args:
        original: What it is compared with.
        new: The model.
        feeds: Inputs of calls; a round goes through all of them.
        rounds: Of which the median counts.
    """
    calls = [_calls(session, feeds) for session in (original, new)]
    ratios = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            old, now = (_timed(session, feeds, count) for session, count in zip((original, new), calls, strict=True))
            ratios.append(old / now)
    finally:
        gc.enable()
    return statistics.median(ratios)


def _calls(session: Session, feeds: Sequence[Feeds]) -> int:
    """How many calls fill a round: all feeds, as often as one another."""
    session.run(feeds[0])
    start = time.perf_counter()
    session.run(feeds[0])
    calls = max(1, min(1000, int(_ROUND_S / max(1e-6, time.perf_counter() - start))))
    return -(-calls // len(feeds)) * len(feeds)


def _timed(session: Session, feeds: Sequence[Feeds], calls: int) -> float:
    start = time.perf_counter()
    for call in range(calls):
        session.run(feeds[call % len(feeds)])
    return (time.perf_counter() - start) / calls


def until(deadline: float, progress: Progress) -> Callable[[str, int, int], None]:
    """A progress callback that ends the work when its time is over."""

    def called(what: str, done: int, total: int) -> None:
        if time.monotonic() >= deadline:
            raise OutOfTime
        progress(what, done, total)

    return called
