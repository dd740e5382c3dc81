"""How the steps of a run are taken.

Here one after the other on the model in memory; in ``cached_steps.py`` with each result kept on disk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from compresskit.checkpoint.bundle import WEIGHTS_NAME, extras_of, write_bundle
from compresskit.model import Card, Model
from compresskit.ranks import ALONE, Ranks
from compresskit.recipe.plan import Recipe, Step
from compresskit.report import Gate, Report, StepEntry
from compresskit.runner.cache import Cache
from compresskit.runner.judging import Measuring, Ready
from compresskit.runner.keys import surroundings
from compresskit.runner.measured import Measured
from compresskit.runner.preconditions import check
from compresskit.runner.prepare import Prepared, counted, to_onnx
from compresskit.runner.stage_runner import StageRunner, aimed_at, form, ship
from compresskit.runner.teacher import teacher_of
from compresskit.stage import Context, Progress, Stage, say_nothing, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source
    from compresskit.exporter.kept import KeptGraph


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Attributes:
        steps: In order.
        output: The folder to write.
        data: Calibration and training data.
        measuring: What the verdict is measured with.
        force: Overwrite an existing output.
        command: How the user asked for this; goes into the report.
        progress: Called from time to time as ``progress(what, done, total)``.
        tell: Shows the user a line right away.
        cache: Where the export of the original is kept; None for this run only.
        recipe: What the steps were read from: then the report tells of each, and the run can be repeated.
        draw: Gives the page that is put beside the report; None leaves it away.
        complete: Adds to the report, and to the folder, before the bundle is sealed.
        known: Figures of the original and the result that were measured already.
        notes: What the report says of the run.
        ranks: The processes that share the layers.
        kept: Under which key what is known of the model is kept, and with it what the step gives, for the same command
            on the same model again; None keeps nothing.
    """

    steps: tuple[Step, ...]
    output: Path
    data: Source | None = None
    measuring: Measuring = field(default_factory=Measuring)
    force: bool = False
    command: str = ""
    progress: Progress = silent
    tell: Callable[[str], None] = say_nothing
    cache: Cache | None = None
    recipe: Recipe | None = None
    draw: Callable[[Report], str] | None = None
    complete: Callable[[Report, Path], Report] | None = None
    known: Measured | None = None
    notes: tuple[str, ...] = ()
    ranks: Ranks = ALONE
    kept: str | None = None

    @classmethod
    def of(cls, stages: Sequence[Stage], output: Path, data: Source | None, measuring: Measuring, **more: Any) -> Job:
        """A job of stages whose steps have no limits of their own; ``more`` are other attributes."""
        return cls(tuple(map(Step, stages)), output, data, measuring, **more)

    @property
    def samples(self) -> Source | None:
        """What models are called with where that must be inputs of their kind: ``data``, or the evaluation data."""
        return self.data if self.data is not None else self.measuring.source

    @property
    def stages(self) -> list[Stage]:
        """Of the steps."""
        return [step.stage for step in self.steps]

    def context(self, work: Path, teacher: Model | None) -> Context:
        """What a stage may use."""
        measuring, limits = self.measuring, self.measuring.limits
        return Context(
            work, self.data, measuring.seed, measuring.threads, self.progress, self.tell, teacher=teacher,
            max_bytes=limits.max_bytes, max_drop=limits.max_drop, ranks=self.ranks,
        )  # fmt: skip

    def to_onnx(self, model: Model, path: Path, graph: KeptGraph | None = None) -> Prepared:
        """The ONNX file of a model, written at ``path`` unless it has one; ``graph`` is of an earlier state of it."""
        return to_onnx(
            model, path, data=self.samples, seed=self.measuring.seed, graph=graph, progress=self.progress
        )  # fmt: skip

    def ship(self, model: Model, folder: Path, graph: KeptGraph | None = None) -> Prepared | None:
        """Write what ships of a model into a folder; None where nothing runs."""
        return ship(model, folder, partial(self.to_onnx, graph=graph) if self.measuring.export else None)

    def fits(self, model: Model, stages: list[Stage]) -> None:
        """Refuse stages that can't work on a model."""
        check(model, stages, self.data, self.measuring)


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Attributes:
        stages: Names of the methods that it came to.
        notes: What was found out on the way.
        target: The CPU that it was told to aim at.
    """

    stages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    target: str | None = None


T = TypeVar("T", bound=Taken)


class Steps(ABC, Generic[T]):
    """Takes the steps of a run.

    Attributes:
        first: The original, before any step.
        baseline: What the result is compared with: the original, or the teacher that the first step names, as a student
            that wasn't trained yet says nothing.
    """

    first: T
    baseline: Ready

    @property
    def entries(self) -> Sequence[StepEntry]:
        """What the report tells of each step that was taken."""
        return ()

    @property
    def gates(self) -> Sequence[Gate]:
        """Of steps that have a limit of their own."""
        return ()

    def stays(self, place: int, step: Step, before: T, at: T) -> bool:
        """Whether a step stays, once it was taken; one that doesn't must leave no trace.

        Args:
            place: Of the step, from 0.
            step: With its limit.
            before: What it started from.
            at: What it gave.
        """
        return True

    @abstractmethod
    def take(self, place: int, stage: Stage, now: T) -> T:
        """Take a step.

        Args:
            place: Of the step, from 0.
            stage: One that chooses among others is replaced by its choice.
            now: The step before, or ``first``.

        Raises:
            CompressKitError: The model, the data or the machine doesn't allow it.
        """

    @abstractmethod
    def deliver(self, now: T, folder: Path) -> Ready:
        """Write what ships of a step into a folder, but for the card."""

    @abstractmethod
    def finish(self, now: T, folder: Path) -> None:
        """Seal the folder: nothing is written into it any more."""


class InMemory(Steps[Taken]):
    """Steps on the model in memory, which each changes: none can be undone, and nothing is exported between them."""

    def __init__(self, model: Model, job: Job, work: Path) -> None:
        """Prepare the original, or the teacher, for the comparison.

        Args:
            model: With its inputs known.
            job: What is to be run.
            work: A folder for temporary files.
        """
        self.first = Taken()
        self._job, self._work = job, work
        self._runner = StageRunner.of(model)
        self._history = len(model.card.history)
        self._teacher = teacher_of(job.stages[0], model) if job.steps else None
        against = self._teacher or model
        shipped = None
        if job.measuring.export:
            shipped = self._original(against)
            if self._teacher is not None:  # what can't be exported is better known before it was trained
                job.to_onnx(model, work / "untrained.onnx")
        counts = self._runner.counts if self._teacher is None else counted(against)
        self.baseline = Ready(light(against), shipped, counts, against.source)

    def _original(self, model: Model) -> Prepared:
        """A model that nothing was done to, as a file: from the cache where there is one."""
        from compresskit.runner.originals import kept_original

        found, cache = None, self._job.cache
        if cache is not None and form(model) == "torch":
            found = kept_original(cache, model, self._job, surroundings(self._job.measuring.threads))
        return found or self._job.to_onnx(model, self._work / "original.onnx")

    def take(self, place: int, stage: Stage, now: Taken) -> Taken:
        """See :class:`Steps`."""
        runner = self._runner
        done, told = len(runner.stages), len(runner.notes)
        teacher = teacher_of(stage, runner.model) if place else self._teacher
        runner.apply(stage, self._job.context(self._work, teacher), exported=self._exported, check=self._job.fits)
        made = runner.stages[done:]
        return Taken(tuple(step.name() for step in made), tuple(runner.notes[told:]), aimed_at(made))

    def deliver(self, now: Taken, folder: Path) -> Ready:
        """See :class:`Steps`."""
        model = self._runner.model
        shipped = self.baseline.shipped
        result = self._job.ship(model, folder, None if shipped is None else shipped.graph)
        place = folder / (WEIGHTS_NAME if model.written is None else model.written.name)
        return Ready(light(model), result, self._runner.counts, place)

    def finish(self, now: Taken, folder: Path) -> None:
        """See :class:`Steps`."""
        bundle(folder, self._runner.model.card, self._runner.model.source)
        shipped, cache = self.baseline.shipped, self._job.cache
        if cache is not None and shipped is not None and shipped.path.is_relative_to(cache.root):
            cache.tidy(keep={shipped.path.parent})

    def _exported(self, model: Model, name: str) -> Path:
        """The ONNX file of a model: of the original the one that it is compared by."""
        shipped = self.baseline.shipped
        if shipped is not None and self._teacher is None and len(model.card.history) == self._history:
            return shipped.path
        return self._job.to_onnx(model, self._work / name).path


def light(model: Model) -> Model:
    """What is known of a model without what lies in memory."""
    return replace(model, body=model.source, weights=None)


def bundle(folder: Path, card: Card, source: Path) -> None:
    """Put what a model carries beside its weights into its bundle, and seal it.

    Sealed last: the hash of every file that ships, and nothing that doesn't.
    """
    extras = [name for name in extras_of(source) if not (folder / name).exists()] if source.is_dir() else []
    write_bundle(folder, card, extras_from=source, extras=extras)
