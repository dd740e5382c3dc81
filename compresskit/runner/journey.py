"""The whole way of one model: stages, export, measurements, verdict, and the bundle they end in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit.checkpoint.atomic import new_folder, refuse_same, refuse_within
from compresskit.checkpoint.bundle import REPORT_NAME, WEIGHTS_NAME, extras_of, write_bundle
from compresskit.errors import UsageError
from compresskit.model import Card, Model
from compresskit.registry import get, methods
from compresskit.report import Report
from compresskit.runner.gates import parse_size
from compresskit.runner.judging import Measuring, Ready, report_on
from compresskit.runner.making import Making, aimed_at, form, ship, workplace
from compresskit.runner.prepare import counted, to_onnx, with_inputs
from compresskit.runner.products import products_for
from compresskit.runner.teacher import teacher_of
from compresskit.stage import Context, Progress, Stage, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

_MERGE = "lora.merge"
_DEFAULT = Measuring()


def run(
    model: Model,
    stages: Sequence[Stage],
    output: Path,
    *,
    data: Source | None = None,
    measuring: Measuring = _DEFAULT,
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
    check(model, stages, data, measuring)
    products_for(measuring.target or aimed_at(list(stages)))  # an unknown name is refused before the work
    known = data if data is not None else measuring.source
    model = with_inputs(model, known) if measuring.export else model
    teacher = teacher_of(stages, model)
    if teacher is not None:
        refuse_same(teacher.source, output)
    whole = replace(measuring, export=False) if form(model) == "weights" else measuring
    with new_folder(output, force=force) as folder:
        with workplace(folder) as work:
            making = Making.of(model)
            ctx = Context(
                work, data, measuring.seed, measuring.threads, progress, tell, teacher=teacher,
                max_bytes=parse_size(measuring.limits.max_size) if measuring.limits.max_size else None,
                max_drop=measuring.limits.max_drop,
            )  # fmt: skip
            first = teacher or model  # a student is held against its teacher
            before = _before(first, making.counts if first is model else None, work, whole, progress)

            def exported(now: Model, name: str) -> Path:
                if before.shipped is not None and now is model is first:
                    return before.shipped.path
                return to_onnx(now, work / name, seed=whole.seed, progress=progress).path

            for place, stage in enumerate(stages):
                making.apply(
                    stage, ctx, exported=exported,
                    check=(lambda now, chosen: check(now, chosen, data, measuring)) if place == 0 else _anything,
                )  # fmt: skip
            whole = replace(whole, target=whole.target or aimed_at(making.stages))
            if all(stage.stage == "lora" for stage in making.stages):  # fine-tuning makes nothing smaller or faster
                whole = replace(whole, limits=replace(whole.limits, may_grow=True))
            result = ship(making.model, folder, export=whole.export, seed=whole.seed, progress=progress)
            after = Ready(making.model, result, making.counts, folder / WEIGHTS_NAME)
            report = report_on(
                before, after, output, whole, data=data, notes=making.notes, command=command, progress=progress
            )
            (folder / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
        finish(folder, making.model.card, model.source)
    return report


def _anything(_model: Model, _stages: list[Stage]) -> None:
    """A check that lets all pass."""


def _before(
    model: Model, counts: dict[str, int | None] | None, work: Path, measuring: Measuring, progress: Progress
) -> Ready:
    """The original, as it is held against the result."""
    shipped = None
    if measuring.export:
        shipped = to_onnx(model, work / "original.onnx", seed=measuring.seed, progress=progress)
    return Ready(model, shipped, counted(model) if counts is None else counts, model.source)


def finish(folder: Path, card: Card, source: Path) -> None:
    """Put what a model carries beside its weights into its bundle, and seal it.

    Sealed last: the hash of every file that ships, and nothing that doesn't.
    """
    extras = [name for name in extras_of(source) if not (folder / name).exists()] if source.is_dir() else []
    write_bundle(folder, card, extras_from=source, extras=extras)


def check(model: Model, stages: Sequence[Stage], data: Source | None, measuring: Measuring) -> None:
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
