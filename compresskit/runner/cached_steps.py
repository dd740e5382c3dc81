"""Steps whose results are kept: each is a bundle in the cache, under the hash of all it depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from compresskit import registry
from compresskit.checkpoint.bundle import ONNX_NAME, WEIGHTS_NAME, seal
from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.recipe.plan import Recipe, Step
from compresskit.report import Gate, StepEntry
from compresskit.runner.cache import ABOUT, Cache
from compresskit.runner.entries import At, at_entry, copy_bundle, write_note
from compresskit.runner.judging import Ready
from compresskit.runner.keys import code_of, digest, options_of, surroundings
from compresskit.runner.loading import load
from compresskit.runner.originals import exported_original, graph_of, original_key
from compresskit.runner.prepare import Prepared, counted, with_inputs
from compresskit.runner.stage_runner import StageRunner, aimed_at, form, workplace
from compresskit.runner.step_costs import StepCosts
from compresskit.runner.steps import Job, Steps, bundle, light
from compresskit.runner.teacher import teacher_of
from compresskit.stage import MODEL, Context, Progress, Stage

_REMEMBERED = 8
"""Measurements of models that are kept in memory, those used last."""


def read_model(recipe: Recipe, path: Path) -> Model:
    """Read a recipe's model, or what one of its steps wrote."""
    step = (path / ABOUT).is_file()
    graph = path.is_dir() and not (path / WEIGHTS_NAME).is_file() and (path / ONNX_NAME).is_file()
    arch = None if step and graph else recipe.arch
    axes = {name: None if axis == "none" else axis for name, axis in (recipe.batch_axis or {}).items()}
    return load(
        path, arch=arch, arch_args=recipe.arch_args if arch else None,
        input_shape=None if step else recipe.input_shape, key=None if step else recipe.key,
        batch_axis=None if step else axes, allow_nonfinite=recipe.allow_nonfinite,
    )  # fmt: skip


class FromEntries(Steps[At]):
    """Steps whose results are entries of a cache."""

    _cache: Cache

    def deliver(self, now: At, folder: Path) -> Ready:
        """See :class:`Steps`."""
        copy_bundle(now, folder)
        shipped = now.ready.shipped
        if shipped is not None:
            shipped = replace(shipped, path=folder / shipped.path.name)
        return replace(now.ready, shipped=shipped, place=folder / WEIGHTS_NAME)

    def finish(self, now: At, folder: Path) -> None:
        """See :class:`Steps`; what was not used for long makes room in the cache."""
        seal(folder, now.ready.model.card)
        self._cache.tidy(keep={now.place} if now.place else set())


class Cached(FromEntries):
    """Steps that start from what was read back from the cache, computed just now or found there.

    So a run that was killed and started again ends in the same bytes as one that wasn't, and a step can be undone.
    """

    def __init__(self, model: Model, job: Job, recipe: Recipe, cache: Cache) -> None:
        """Put the original into the cache, or the teacher too.

        Args:
            model: With its inputs known.
            job: What is to be run.
            recipe: What its steps were read from.
            cache: Where they are kept.
        """
        self.surroundings = surroundings(job.measuring.threads)
        self._job, self._recipe, self._cache = job, recipe, cache
        self._samples = None if job.samples is None else job.samples.fingerprint()
        self._found_out: dict[tuple[str, str], Any] = {}
        self.first = self._origin(model, recipe.arch)
        # Only what is known of it is needed from here on: its weights would lie in memory for nothing.
        self._original = self.first.ready.model
        named = job.stages[0].learns_from if job.steps else None
        teacher = None if named is None or named.model == MODEL else teacher_of(job.stages[0], model)
        against = self.first if teacher is None or named is None else self._origin(teacher, named.arch)
        self.baseline = against.ready
        self._costs = StepCosts(job, against, self.surroundings, cache)

    def take(self, place: int, stage: Stage, now: At) -> At:
        """See :class:`Steps`."""
        key = self._key(now.key, stage)
        entry = self._cache.find(key)
        known = entry is not None
        told = " (from the cache)" if known else ""
        self._job.tell(f"step {place + 1} of {len(self._job.steps)}: {stage.name()}{told}")
        if entry is None:
            self._make(key, stage, now)
            entry = self._found(key)
        return replace(at_entry(key, entry, self._original), known=known)

    def progress(self, progress: Progress) -> None:
        """Call another function from here on."""
        self._job = replace(self._job, progress=progress)

    def chosen(self, stage: Stage, now: At, work: Path) -> tuple[Stage, ...]:
        """The stages with explicit options that a stage comes to, where it picks others; itself elsewhere.

        Args:
            stage: One that quantizes may pick others by looking at the model: what it picked is remembered.
            now: What it starts from.
            work: A folder for temporary files.
        """
        if not stage.kind.quantizes or type(stage).choose is Stage.choose:
            return (stage,)
        key = digest("chosen", self._key(now.key, stage))
        if (known := self._cache.recall(key)) is None:
            found = stage.choose(self._model(now), self._context(now, work, None)).stages
            known = {"stages": [[one.name(), one.model_dump(mode="json", exclude_unset=True)] for one in found]}
            self._cache.remember(key, known)
        return tuple(registry.get(name)(**options) for name, options in known["stages"])

    @property
    def entries(self) -> list[StepEntry]:
        """See :class:`Steps`."""
        return self._costs.entries

    @property
    def gates(self) -> list[Gate]:
        """See :class:`Steps`."""
        return self._costs.gates

    def stays(self, place: int, step: Step, before: At, at: At) -> bool:
        """Whether it keeps its limit, or needn't."""
        return self._costs.stays(place, step, before, at)

    def _origin(self, model: Model, arch: str | None) -> At:
        """A model before any step, with its ONNX file."""
        key = digest(
            original_key(model, self._job, self.surroundings), self._recipe.allow_nonfinite, code_of(arch)
        )  # fmt: skip
        if form(model) != "torch" or not self._job.measuring.export:
            shipped = Prepared(model.body) if isinstance(model.body, Path) and self._job.measuring.export else None
            return At(key=key, place=None, ready=Ready(light(model), shipped, counted(model), model.source))
        return at_entry(key, exported_original(self._cache, key, model, self._job), light(model))

    def _found(self, key: str) -> Path:
        place = self._cache.find(key)
        if place is None:
            raise UsageError(f"what was just written to the cache is not there any more: {self._cache.root / key}")
        return place

    def _key(self, before: str, stage: Stage) -> str:
        limits = self._job.measuring.limits
        chooses = type(stage).choose is not Stage.choose
        aims = [limits.max_drop, limits.max_size] if chooses or stage.reads_limits else []
        return digest(
            before, stage.name(), options_of(stage), self._samples, self._recipe.seed, self._recipe.threads, aims,
            self._job.measuring.export, self.surroundings,
        )  # fmt: skip

    def _make(self, key: str, stage: Stage, now: At) -> None:
        """Compute a step into the cache."""
        job, measuring = self._job, self._job.measuring
        with self._cache.fill(key) as folder:
            with workplace(folder) as work:
                runner = StageRunner(self._model(now), dict(now.ready.counts))
                ctx = self._context(now, work, self._teacher(stage, runner.model))
                runner.apply(stage, ctx, exported=self._exported(now, work), check=job.fits)
                result = job.ship(
                    runner.model, folder, None if self.first.place is None else graph_of(self.first.place)
                )
                target = measuring.target or aimed_at(runner.stages)
                names = [step.name() for step in runner.stages]
                write_note(folder, result, runner.counts, *names, notes=runner.notes, target=target)
            bundle(folder, runner.model.card, self._original.source)

    def _context(self, now: At, work: Path, teacher: Model | None) -> Context:
        """What a stage may use, with what others found out about the same model."""

        def once(name: str, make: Callable[[], Any]) -> Any:
            key = now.key, name
            self._found_out[key] = self._found_out.pop(key) if key in self._found_out else make()
            while len(self._found_out) > _REMEMBERED:
                del self._found_out[next(iter(self._found_out))]
            return self._found_out[key]

        return replace(self._job.context(work, teacher), once=once)

    def _model(self, now: At) -> Model:
        """The model as it is now, fresh from disk, its card that of the original with more history."""
        if now is self.first:
            model = read_model(self._recipe, self._original.source)
            return with_inputs(replace(model, card=self._original.card), None)
        if now.place is None:
            raise TypeError("a step has an entry")
        found = read_model(self._recipe, now.place)
        card = replace(found.card, format=self._original.card.format)
        return replace(found, card=card, source=self._original.source)

    def _exported(self, now: At, work: Path) -> Callable[[Model, str], Path]:
        """How a stage that works on ONNX gets its file: the one that the step before wrote, if nothing came after."""
        shipped, history = now.ready.shipped, len(now.ready.model.card.history)

        def exported(model: Model, name: str) -> Path:
            if shipped is not None and len(model.card.history) == history:
                return shipped.path
            return self._job.to_onnx(model, work / name).path

        return exported

    def _teacher(self, stage: Stage, student: Model) -> Model | None:
        if (named := stage.learns_from) is not None and named.model == MODEL:
            return replace(read_model(self._recipe, self._original.source), card=self._original.card)
        return teacher_of(stage, student)
