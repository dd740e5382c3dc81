"""The whole way of one model: stages, export, measurements, verdict, and the bundle they end in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from compresskit.bench.machine import environment
from compresskit.checkpoint.atomic import new_folder, refuse_same, refuse_within
from compresskit.checkpoint.bundle import ONNX_NAME, REPORT_NAME, WEIGHTS_NAME, extras_of, write_bundle
from compresskit.errors import UsageError
from compresskit.model import Applied, Card, Model, portable
from compresskit.registry import get, methods
from compresskit.report import Coverage, Gate, Measurement, Report, judge
from compresskit.runner.candidate import Candidate, files_of
from compresskit.runner.gates import Limits, gates, parse_size
from compresskit.runner.measure import SEQUENCE, fitting, quality, speed
from compresskit.runner.prepare import Prepared, counted, to_onnx, with_inputs
from compresskit.runner.products import about_products, products_for
from compresskit.runner.teacher import teacher_of
from compresskit.stage import BESIDE, Context, Progress, Stage, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

_WORK = ".work"
_MERGE = "lora.merge"
_CHANGE_SIZE = ("prune", "factorize", "distill", "lora")


@dataclass(frozen=True)
class Measuring:
    """What the verdict is measured with.

    Attributes:
        source: Evaluation data; None leaves the verdict UNVERIFIED.
        metric: Name or ``FILE.py:NAME``; None picks one by data and task.
        limits: The gates.
        export: Export to ONNX; without it nothing runs, so neither quality nor speed is measured.
        bench: Measure the speed.
        sequence: Tokens of a sample in the bench.
        threads: Of one operator; 0 is the runtime's choice.
        device: As the runtime names it.
        seed: Of made-up inputs.
        target: Name of the CPU whose 8-bit products the quality is measured with; None is this machine, or the target
            that the last stage was given.
    """

    source: Source | None = None
    metric: str | None = None
    limits: Limits = field(default_factory=Limits)
    export: bool = True
    bench: bool = True
    sequence: int = SEQUENCE
    threads: int = 0
    device: str = "cpu"
    seed: int = 0
    target: str | None = None


def form(model: Model) -> str:
    """``torch``, ``onnx`` or ``weights``."""
    if not isinstance(model.body, Path):
        return "torch"
    return "onnx" if model.body.suffix == ".onnx" else "weights"


def run(
    model: Model,
    stages: Sequence[Stage],
    output: Path,
    *,
    data: Source | None = None,
    measuring: Measuring = Measuring(),
    force: bool = False,
    command: str = "",
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Apply stages to a model and write the bundle with its report.

    The bundle appears under its final name when everything in it is whole; a bundle whose gates fail is written too,
    with the verdict FAIL in its report, but not one that fails the parity gate.

    Args:
        model: What was read; changed in place and not to be used afterwards.
        stages: In order.
        output: The folder to write.
        data: Calibration data.
        measuring: What the verdict is measured with.
        force: Replace an output that is there.
        command: How the user asked for this; goes into the report.
        progress: Called now and then.
        tell: Shows the user a line right away.

    Raises:
        GateError: The ONNX export computes something else than the model.
        UsageError: Options that don't fit, an output that exists or is the input.
        InputError: The model or the data doesn't allow it.
        MachineError: The disk is full or read-only, memory runs out.
    """
    refuse_same(model.source, output)
    for state in filter(None, (getattr(stage, "checkpoint", None) for stage in stages)):
        refuse_within(state, output)
    _check(model, stages, data, measuring)
    known = data if data is not None else measuring.source
    model = with_inputs(model, known) if measuring.export else model
    teacher = teacher_of(stages, model)
    if teacher is not None:
        refuse_same(teacher.source, output)
    whole = replace(measuring, export=False) if form(model) == "weights" else measuring
    with new_folder(output, force=force) as folder:
        with _workplace(folder) as work:
            limits = measuring.limits
            size = parse_size(limits.max_size) if limits.max_size else None
            ctx = Context(
                work, data, measuring.seed, measuring.threads, progress, tell, max_bytes=size,
                max_drop=limits.max_drop, teacher=teacher,
            )  # fmt: skip
            chosen = [stage.choose(model, ctx) for stage in stages]
            settled = [stage for choice in chosen for stage in choice.stages]
            _check(model, settled, data, measuring)
            whole = replace(whole, target=whole.target or _aimed_at(settled))
            if all(stage.stage == "lora" for stage in settled):  # fine-tuning makes nothing smaller or faster
                whole = replace(whole, limits=replace(whole.limits, may_grow=True))
            products_for(whole.target)  # an unknown name is refused before the work
            notes = [*_seen(data, measuring.source), *(n for c in chosen for n in c.notes)]
            journey = _Journey(ctx, whole, folder, output, command, notes)
            report, card = journey.run(model, settled)
            for path in sorted((work / BESIDE).iterdir()) if (work / BESIDE).is_dir() else ():
                path.rename(folder / path.name)
        # Sealed last: the hash of every file that ships, and nothing that doesn't.
        source = model.source
        extras = [name for name in extras_of(source) if not (folder / name).exists()] if source.is_dir() else []
        write_bundle(folder, card, extras_from=source, extras=extras)
    return report


def _aimed_at(stages: Sequence[Stage]) -> str | None:
    """The target that the last stage with such an option was given."""
    return next((name for stage in reversed(stages) if (name := getattr(stage, "target", None))), None)


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    work = folder / _WORK
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check(model: Model, stages: Sequence[Stage], data: Source | None, measuring: Measuring) -> None:
    """Everything that can be known to be wrong before anything runs."""
    now = form(model)
    runs = measuring.export and now != "weights"
    if not runs and (measuring.source is not None or measuring.limits.min_speedup is not None):
        why = "leave --no-export away" if now != "weights" else "give --arch FILE.py:NAME"
        what = "--eval-data" if measuring.source is not None else "--min-speedup"
        raise UsageError(f"{what} needs a model that runs, and no ONNX file is written here", why)
    if now == "weights" and model.card.history:
        done = model.card.history[-1].name
        raise UsageError(f"{model.source} went through {done} already", "start from the original again")
    before = [applied.name for applied in model.card.history if applied.name.startswith("quantize.")]
    if now == "onnx" and before and any(stage.stage == "quantize" for stage in stages):
        raise UsageError(f"{model.source} went through {before[-1]} already", "start from the original again")
    measuring.limits.check(evaluated=runs and measuring.source is not None, benched=runs and measuring.bench)
    beside = False
    for applied in model.card.history if now == "torch" else ():
        beside = (beside or bool(applied.facts.get("beside"))) and applied.name != _MERGE
    for place, stage in enumerate(stages):
        if stage.stage == "factorize" and any(earlier.stage == "quantize" for earlier in stages[:place]):
            raise UsageError(f"{stage.name()} comes after quantize", "factorize first, then quantize")
        if beside and stage.name() != _MERGE:
            raise UsageError(
                f"{stage.name()} can't work on adapters that lie beside the weights: they merge before",
                "merge them first: compresskit lora merge MODEL -o MERGED (lora's own --merge does it at once)",
            )
        beside = stage.beside
        exported = now == "torch" and "torch" not in stage.takes and "onnx" in stage.takes
        if now not in stage.takes and not exported:
            what = {"torch": "a module", "onnx": "an ONNX graph", "weights": "tensors without an architecture"}[now]
            able = [m for m in methods(stage.stage) if now in get(f"{stage.stage}.{m}").takes]
            bundled = now == "onnx" and model.source.is_dir()
            hints = ["give --arch FILE.py:NAME"] * (now == "weights" or bundled) + [f"--method {m} can" for m in able]
            hint = ", or: ".join(hints)
            raise UsageError(f"{stage.name()} can't work on {what}, which {model.source} is", hint)
        trains = "training" in stage.needs or getattr(stage, "epochs", 0) > 0
        if data is None and (trains or "calibration" in stage.needs):
            kind = "training" if trains else "calibration"
            raise UsageError(f"{stage.stage} --method {stage.method} needs {kind} data", "give --data")
        if stage.gives == "onnx" and not measuring.export:
            raise UsageError(f"{stage.name()} gives an ONNX file", "leave --no-export away")
        now = now if stage.gives == "same" else stage.gives


@dataclass
class _Journey:
    """The state of one run."""

    ctx: Context
    measuring: Measuring
    folder: Path
    output: Path
    command: str
    reasons: list[str]

    def run(self, model: Model, stages: Sequence[Stage]) -> tuple[Report, Card]:
        counts = counted(model)
        given = model
        first = self.ctx.teacher or model  # a student is held against its teacher
        origin = first.source
        name = origin.name or str(origin)
        before = counted(first) if first is not model else counts
        original = self._original(first)
        common = self._common(first)
        for stage in stages:
            if original is not None and form(model) == "torch" and "torch" not in stage.takes:
                start = original if model is first is given else self._original(model, f"{stage.method}.onnx")
                model = replace(model, body=start.path if start else model.body)
            model = stage.run(model, self.ctx)
            if stage.stage in _CHANGE_SIZE:  # the others leave parameters and products as they are
                counts = counted(model)
        result = self._result(model)
        baseline = Candidate(name, original.path if original else origin, portable(origin), **common, **before)
        new_path = result.path if result else self.folder / WEIGHTS_NAME
        shown = portable(self.output / new_path.name)
        new = Candidate(self.output.name, new_path, shown, **self._common(model), **counts)
        if new.name == baseline.name:
            new = replace(new, name=shown)
        report = self._report(model, baseline, new, result, original)
        (self.folder / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
        return report, model.card

    def _unused(self, last: Applied | None) -> list[str]:
        """Data that the method had no use for."""
        data = self.ctx.data
        used = last is not None and not last.facts.keys().isdisjoint({"calibration", "training"})
        return [_nothing_of(data, last)] if data is not None and last and not used else []

    def _common(self, model: Model) -> dict[str, Any]:
        options = self.measuring
        return {
            "inputs": model.card.inputs,
            "task": model.card.task,
            "threads": options.threads,
            "device": options.device,
            "products": products_for(options.target),
        }

    def _original(self, model: Model, name: str = "original.onnx") -> Prepared | None:
        if not self.measuring.export:
            return None
        return to_onnx(model, self.ctx.work / name, seed=self.measuring.seed, progress=self.ctx.progress)

    def _result(self, model: Model) -> Prepared | None:
        """Write what ships: the ONNX file where there is one, the weights where they are the project's own."""
        result: Prepared | None = None
        if form(model) == "torch":
            from compresskit.runner.weights import write_config, write_weights

            write_weights(model, self.folder / WEIGHTS_NAME)
            write_config(model, self.folder)
        if form(model) == "weights" and isinstance(model.body, Path):
            model.body.rename(self.folder / WEIGHTS_NAME)
        elif self.measuring.export:
            result = to_onnx(model, self.folder / ONNX_NAME, seed=self.measuring.seed, progress=self.ctx.progress)
            if result.path.parent != self.folder:
                result = replace(result, path=_moved(result.path, self.folder / ONNX_NAME))
        return result

    def _report(
        self, model: Model, baseline: Candidate, new: Candidate, result: Prepared | None, original: Prepared | None
    ) -> Report:
        options = self.measuring
        entries = [baseline.entry(), new.entry()]
        measured, timed = None, []
        shorter: list[str] = []
        if result is not None:
            measured = quality(
                [baseline, new], options.source, options.metric, seed=options.seed, progress=self.ctx.progress
            )
            if options.bench:
                sources = [model.source, *([self.ctx.teacher.source] if self.ctx.teacher else [])]
                sequence, shorter = fitting(sources, options.sequence)
                timed = speed([baseline, new], sequence=sequence, seed=options.seed, progress=self.ctx.progress)
        about_int8 = about_products([new], measured, options.source, progress=self.ctx.progress) if result else []
        last = model.card.history[-1] if model.card.history else None
        rounded, about = _rounding(last.facts if last and measured is None else {}, new.name)
        found = gates(entries, measured, timed, options.limits)
        if last is not None and last.facts.get("merged"):  # dense layers were asked for: larger is what they are
            found = [gate for gate in found if gate.asked or gate.name not in ("size", "speed")]
        # An ONNX stage starts from the export of the original: then that export's proof is the one there is.
        proven = next((p for p in (result, original) if p is not None and p.export is not None), None)
        if proven is not None:
            found.insert(0, parity_gate(proven))
        verified = measured is not None and bool(measured.scores)
        return Report(
            command=self.command,
            verdict=judge(found, verified=verified),
            models=entries,
            measurements=[*(measured.measurements if measured else []), *timed, *rounded],
            coverage=coverage(last.facts if last else {}, last.skipped if last else {}),
            gates=found,
            notes=[
                *self.reasons,
                *self._unused(last),
                *(last.facts.get("notes", []) if last else []),
                *about,
                *(result.notes if result else []),
                *(measured.notes if measured else []),
                *about_int8,
                *shorter,
            ],
            environment=environment(options.threads),
            history=[asdict(applied) for applied in model.card.history],
        )


def _seen(data: Source | None, evaluated: Source | None) -> list[str]:
    """What is to be said where a model is judged by samples that it was fitted to."""
    if (
        data is None
        or evaluated is None
        or len(data) != len(evaluated)
        or data.fingerprint() != evaluated.fingerprint()
    ):
        return []
    return ["the evaluation data are those of --data: the quality is of samples that the result was fitted to"]


def _nothing_of(data: Source, last: Applied) -> str:
    return f"{portable(data.name)} was not used: {last.name.partition('.')[2]} needs no data here"


def parity_gate(result: Prepared) -> Gate:
    """What the export's parity gate found, as a line of the report; a miss never gets this far."""
    if result.export is None:
        raise TypeError("nothing was exported")
    from compresskit.export.parity import RELATIVE

    parity = result.export.parity
    return Gate(
        name="ONNX parity",
        limit=f"≤ {RELATIVE:g} relative",
        value=parity.rel_l2,
        passed=parity.passed,
        reason=f"largest difference {parity.max_abs:.2g} on {parity.n} seeded inputs",
    )


def _rounding(facts: dict[str, Any], name: str) -> tuple[list[Measurement], list[str]]:
    """What is known of weights that nothing ran: how loud they are over their rounding error, layer by layer."""
    known = {layer: fact["sqnr"] for layer, fact in facts.get("layers", {}).items() if "sqnr" in fact}
    if not known:
        return [], []
    worst = min(known, key=lambda layer: known[layer])
    middle = median(known.values())
    note = (
        f"SQNR of the weights: median of {len(known)} layers {middle:.1f} dB, lowest {known[worst]:.1f} dB in {worst}"
    )
    return [Measurement(model=name, name="weight_sqnr", value=middle, unit="dB", n=len(known))], [note]


def coverage(facts: dict[str, Any], skipped: dict[str, str]) -> Coverage:
    """The layers that a stage changed, in words, and those it left alone."""
    done = {name: _described(layer) for name, layer in facts.get("layers", {}).items()}
    return Coverage(done=done, skipped=skipped)


def _described(layer: dict[str, Any]) -> str:
    group = layer.get("group_size")
    scope = f"group {group}" if group else "per tensor" if layer.get("scales") == 1 else "per channel"
    kind = f"{layer['kind']} " if layer.get("kind") else ""
    repair = f", repair {layer['repair']}" if layer.get("repair") else ""
    return f"{kind}{layer['bits']} bit, {scope}{repair}" if "bits" in layer else str(layer.get("about", layer))


def _moved(path: Path, target: Path) -> Path:
    """Move an ONNX file that has its final name already, since it names its external data."""
    for part in reversed(list(files_of(path))):
        part.rename(target.with_name(part.name))
    return target
