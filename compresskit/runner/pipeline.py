"""A recipe run: each finished step is kept under the hash of all it depends on, and never computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.atomic import new_folder, refuse_same, refuse_within
from compresskit.checkpoint.bundle import (
    ONNX_NAME,
    PAGE_NAME,
    PROVENANCE_NAME,
    REPORT_NAME,
    WEIGHTS_NAME,
    seal,
)
from compresskit.errors import GateError, UsageError
from compresskit.model import Model
from compresskit.quality.drop import parse_drop, within
from compresskit.recipe.limits import DEFAULT_DROP, Limits
from compresskit.recipe.plan import MODEL, Recipe, Step
from compresskit.report import Gate, Report, StepEntry
from compresskit.runner.cache import ABOUT, Cache
from compresskit.runner.disk_space import check_room
from compresskit.runner.entries import At, at_entry, bytes_of, copy_bundle, write_note
from compresskit.runner.int8_saturation import int8_arithmetic_on
from compresskit.runner.journey import check, finish, refuse_states
from compresskit.runner.judging import Measuring, Ready, RunLog, report_on
from compresskit.runner.keys import content, digest, options_of, surroundings
from compresskit.runner.loading import load
from compresskit.runner.measure import score
from compresskit.runner.prepare import Prepared, counted, to_onnx, with_inputs
from compresskit.runner.provenance import provenance
from compresskit.runner.sources import opener
from compresskit.runner.stage_runner import StageRunner, aimed_at, form, ship, workplace
from compresskit.runner.teacher import teacher_of
from compresskit.stage import Context, Progress, Stage, say_nothing, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

Read = Callable[[Path], Model]


def reader(recipe: Recipe) -> Read:
    """How a recipe's model, and what its steps wrote, is read."""

    def read(path: Path) -> Model:
        step = (path / ABOUT).is_file()
        graph = path.is_dir() and not (path / WEIGHTS_NAME).is_file() and (path / ONNX_NAME).is_file()
        arch = None if step and graph else recipe.arch
        return load(
            path, arch=arch, arch_args=recipe.arch_args if arch else None,
            input_shape=None if step else recipe.input_shape, key=None if step else recipe.key,
            allow_nonfinite=recipe.allow_nonfinite,
        )  # fmt: skip

    return read


def run_recipe(
    recipe: Recipe,
    output: str | Path,
    *,
    bench: bool = True,
    cache: Cache | None = None,
    force: bool = False,
    command: str = "",
    progress: Progress = silent,
    tell: Callable[[str], None] = say_nothing,
    draw: Callable[[Report], str] | None = None,
) -> Report:
    """Run the steps of a recipe, write the bundle, and judge it against the original.

    What a step gives is read back from the cache before the next one goes on from it, computed just now or found there:
    a run that was killed and started again ends in the same bytes as one that wasn't. Latency is always measured.

    Args:
        recipe: With a model.
        output: The folder to write.
        bench: Measure the speed.
        cache: Where finished steps are kept; None keeps them until the end of this run.
        force: Replace an output that is there.
        command: How the user asked for this.
        progress: Called now and then.
        tell: Shows the user a line right away.
        draw: Gives the page that is put beside the report; None leaves it away.

    Raises:
        GateError: A step's ONNX export computes something else, or every step was undone; nothing is written.
        UsageError: Options that don't fit, an output that exists or is an input.
        InputError: The model or the data doesn't allow it.
        MachineError: The disk is full or read-only, memory runs out.
    """
    if recipe.model is None:
        raise UsageError("the recipe names no model", "give one: compresskit run RECIPE MODEL")
    origin, output = Path(recipe.model), Path(output)
    refuse_same(origin, output)
    stages = [step.stage for step in recipe.steps]
    refuse_states(stages, output)
    if cache is not None:
        refuse_within(cache.root, output)
    check_room(recipe, output, None if cache is None else cache.root)
    read = reader(recipe)
    model = read(origin)
    open_ = opener(model, recipe.normalize, recipe.sequence, paths=[recipe.data, recipe.eval_data])
    data, evaluated = open_(recipe.data), open_(recipe.eval_data)
    measuring = Measuring(
        evaluated, recipe.metric, Limits(recipe.max_drop, recipe.max_size, recipe.min_speedup), bench=bench,
        sequence=recipe.sequence, threads=recipe.threads, device=recipe.device, seed=recipe.seed,
    )  # fmt: skip
    check(model, stages, data, measuring)
    int8_arithmetic_on(measuring.target or aimed_at(stages))
    model = with_inputs(model, data if data is not None else evaluated) if measuring.export else model
    if form(model) == "weights":
        measuring = replace(measuring, export=False)
    with new_folder(output, force=force) as folder:
        with workplace(folder) as work:
            kept = cache or Cache(work / "steps")
            walk = _Walk(recipe, read, model, data, measuring, kept, work, progress, tell)
            del model
            report = walk.run(folder, output, command)
            (folder / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
            if draw is not None:
                (folder / PAGE_NAME).write_text(draw(report), encoding="utf-8")
        seal(folder, walk.now.ready.model.card)
    kept.tidy(keep={at.place for at in (walk.now,) if at.place})
    return report


@dataclass
class _Walk:
    """One run of a recipe."""

    recipe: Recipe
    read: Read
    original: Model
    data: Source | None
    measuring: Measuring
    cache: Cache
    work: Path
    progress: Progress
    tell: Callable[[str], None]
    entries: list[StepEntry] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.surroundings = surroundings(self.measuring.threads)
        self.samples = None if self.data is None else self.data.fingerprint()
        source = self.measuring.source
        self.evaluated = None if source is None else source.fingerprint()
        self.now = self.first = self._start()
        # Only what is known of it is needed from here on: its weights would lie in memory for nothing.
        self.original = self.first.ready.model

    def run(self, folder: Path, output: Path, command: str) -> Report:
        """Take all steps, and measure what came out."""
        done: list[At] = []
        for index, step in enumerate(self.recipe.steps):
            if (at := self._take(index, step)) is not None:
                done.append(at)
        if not done:
            names = ", ".join(entry.name for entry in self.entries)
            raise GateError(f"every step was undone ({names}): nothing is left to write", "loosen max-drop")
        copy_bundle(self.now, folder)
        shipped = self.now.ready.shipped
        if shipped is not None:
            shipped = replace(shipped, path=folder / shipped.path.name)
        target = next((at.target for at in reversed(done) if at.target), None)
        measuring = self.measuring.of([step.stage for step in self.recipe.steps], target)
        after = replace(self.now.ready, shipped=shipped, place=folder / WEIGHTS_NAME)
        log = RunLog(self.data, [note for at in done for note in at.notes], self.entries, self.gates)
        report = report_on(self.first.ready, after, output, measuring, log, command=command, progress=self.progress)
        found = provenance(self.recipe, self.surroundings, self.entries, folder)
        (folder / PROVENANCE_NAME).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return report

    def _start(self) -> At:
        """The original, with its ONNX file."""
        model = self.original
        key = digest(
            "original", content(Path(str(self.recipe.model))), model.card.to_json(), self.recipe.allow_nonfinite,
            self.recipe.key, _code_of(self.recipe.arch), self.measuring.export, self.measuring.seed, self.surroundings,
        )  # fmt: skip
        light = replace(model, body=model.source)
        if form(model) != "torch" or not self.measuring.export:
            shipped = Prepared(model.body) if isinstance(model.body, Path) and self.measuring.export else None
            return At(key, None, Ready(light, shipped, counted(model), model.source))
        place = self.cache.find(key)
        if place is None:
            with self.cache.fill(key) as folder:
                made = to_onnx(model, folder / ONNX_NAME, seed=self.measuring.seed, progress=self.progress)
                write_note(folder, made, counted(model), "export")
                seal(folder, model.card)
            place = self._found(key)
        return at_entry(key, place, light)

    def _found(self, key: str) -> Path:
        place = self.cache.find(key)
        if place is None:
            raise UsageError(f"what was just written to the cache is not there any more: {self.cache.root / key}")
        return place

    def _take(self, index: int, step: Step) -> At | None:
        """Take a step; None where it was undone."""
        before = self.now
        name = step.stage.name()
        key = self._key(before.key, step.stage)
        place = self.cache.find(key)
        state = "done" if place is None else "cached"
        self.tell(f"step {index + 1} of {len(self.recipe.steps)}: {name}{'' if place is None else ' (from the cache)'}")
        if place is None:
            self._make(key, step.stage)
            place = self._found(key)
        at = at_entry(key, place, self.original)
        entry, passed = self._cost(step, before, at)
        named = ", ".join(n for n in at.stages if n != name)
        entry = entry.model_copy(update={"name": f"{name} ({named})" if named else name, "state": state})
        if not passed and step.rollback:
            entry = entry.model_copy(update={"state": "undone"})
            self.tell(f"step {index + 1}: undone, {entry.reason}")
        elif passed is not None and step.max_drop is not None:
            self.gates.append(_gate(index, entry, step.max_drop, passed))
        self.entries.append(entry)
        if entry.state == "undone":
            return None
        self.now = at
        return at

    def _key(self, before: str, stage: Stage) -> str:
        limits = self.measuring.limits
        chooses = type(stage).choose is not Stage.choose
        aims = [limits.max_drop, limits.max_size] if chooses else []
        return digest(
            before, stage.name(), options_of(stage), self.samples, self.recipe.seed, self.recipe.threads, aims,
            self.measuring.export, self.surroundings,
        )  # fmt: skip

    def _make(self, key: str, stage: Stage) -> None:
        """Compute a step into the cache."""
        with self.cache.fill(key) as folder:
            with workplace(folder) as work:
                making = StageRunner(self._model(), dict(self.now.ready.counts))
                limits = self.measuring.limits
                ctx = Context(
                    work, self.data, self.measuring.seed, self.measuring.threads, self.progress, self.tell,
                    max_bytes=limits.max_bytes, max_drop=limits.max_drop,
                    teacher=self._teacher(stage, making.model),
                )  # fmt: skip
                making.apply(stage, ctx, exported=self._exported(work))
                result = ship(
                    making.model, folder, export=self.measuring.export, seed=self.measuring.seed, progress=self.progress
                )
                target = self.measuring.target or aimed_at(making.stages)
                names = [step.name() for step in making.stages]
                write_note(folder, result, making.counts, *names, notes=making.notes, target=target)
            finish(folder, making.model.card, self.original.source)

    def _model(self) -> Model:
        """The model as it is now, fresh from disk, its card that of the original with more history."""
        if self.now is self.first:
            model = self.read(self.original.source)
            return with_inputs(replace(model, card=self.original.card), None)
        place = self.now.place
        if place is None:
            raise TypeError("a step has an entry")
        found = self.read(place)
        card = replace(found.card, format=self.original.card.format)
        return replace(found, card=card, source=self.original.source)

    def _exported(self, work: Path) -> Callable[[Model, str], Path]:
        """How a stage that works on ONNX gets its file: the one that the step before wrote, if nothing came after."""
        shipped, history = self.now.ready.shipped, len(self.now.ready.model.card.history)

        def exported(model: Model, name: str) -> Path:
            if shipped is not None and len(model.card.history) == history:
                return shipped.path
            return to_onnx(model, work / name, seed=self.measuring.seed, progress=self.progress).path

        return exported

    def _teacher(self, stage: Stage, student: Model) -> Model | None:
        if (named := stage.learns_from) is not None and named.model == MODEL:
            return replace(self.read(self.original.source), card=self.original.card)
        return teacher_of([stage], student)

    def _cost(self, step: Step, before: At, at: At) -> tuple[StepEntry, bool | None]:
        """What a step did, and whether it keeps its limit; None where nothing was measured."""
        entry = StepEntry(name="", state="done", bytes=bytes_of(at.ready))
        old, new = self._figure(before), self._figure(at)
        if old is None or new is None:
            return entry, None
        limit, against = step.max_drop, old
        if limit is None:
            limit, first = self.recipe.max_drop or DEFAULT_DROP, self._figure(self.first)
            against = first if first is not None else old
        parsed = parse_drop(limit)
        passed, lost = within(parsed, against["value"], new["value"], new["higher"])
        drop = (old["value"] - new["value"]) * (1 if new["higher"] else -1)
        places = f"{against['value']:.3f} → {new['value']:.3f}, {lost:+.3f} lost of {parsed} allowed"
        update = {"metric": new["metric"], "value": new["value"], "drop": drop, "reason": "" if passed else places}
        return entry.model_copy(update=update), passed

    def _figure(self, at: At) -> dict[str, Any] | None:
        """The metric of a model on the evaluation data; the same on every run, so it is remembered."""
        source, shipped = self.measuring.source, at.ready.shipped
        if source is None or shipped is None:
            return None
        target = self.measuring.target or at.target
        metric = self.measuring.metric
        key = digest(
            "figure", at.key, self.evaluated, metric, _code_of(metric), target, self.surroundings,
            self.measuring.device,
        )  # fmt: skip
        if (known := self.cache.recall(key)) is None:
            candidate = at.ready.candidate("step", "step", replace(self.measuring, target=target))
            chosen, found = score(candidate, source, metric, progress=self.progress)
            known = {}
            if chosen is not None and found is not None:
                known = {"metric": chosen.name, "value": found.value, "higher": chosen.higher_is_better}
            self.cache.remember(key, known)
        return known or None


def _gate(index: int, entry: StepEntry, limit: str, passed: bool) -> Gate:
    name = f"step {index + 1}, {entry.name}: {entry.metric} drop"
    return Gate(
        name=name, limit=f"≤ {parse_drop(limit)}", value=entry.drop, unit="pt", passed=passed, asked=True,
        reason=entry.reason,
    )  # fmt: skip


def _code_of(word: str | None) -> str | None:
    """The content of the file that ``FILE.py:NAME`` names."""
    place = Path((word or "").rpartition(":")[0])
    return content(place) if place.suffix == ".py" and place.is_file() else word
