"""The whole way of one model: stages, export, measurements, verdict, and the bundle they end in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit import registry
from compresskit.checkpoint.atomic import new_folder, refuse_same, refuse_within
from compresskit.checkpoint.bundle import REPORT_NAME, WEIGHTS_NAME, extras_of, write_bundle
from compresskit.model import Card, Model
from compresskit.recipe.head import OUTPUT
from compresskit.recipe.naming import named_by
from compresskit.recipe.order import Start, check_measured, misfits
from compresskit.report import Report
from compresskit.runner.int8_saturation import int8_arithmetic_on
from compresskit.runner.judging import Measuring, Ready, RunLog, report_on
from compresskit.runner.prepare import counted, to_onnx, with_inputs
from compresskit.runner.stage_runner import StageRunner, aimed_at, form, ship, workplace
from compresskit.runner.teacher import teacher_of
from compresskit.stage import Context, Progress, Stage, say_nothing, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

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
    tell: Callable[[str], None] = say_nothing,
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
    refuse_states(stages, output)
    check(model, stages, data, measuring)
    int8_arithmetic_on(measuring.target or aimed_at(list(stages)))  # an unknown name is refused before the work
    known = data if data is not None else measuring.source
    model = with_inputs(model, known) if measuring.export else model
    teacher = teacher_of(stages, model)
    if teacher is not None:
        refuse_same(teacher.source, output)
    whole = replace(measuring, export=False) if form(model) == "weights" else measuring
    with new_folder(output, force=force) as folder:
        with workplace(folder) as work:
            making = StageRunner.of(model)
            ctx = Context(
                work, data, measuring.seed, measuring.threads, progress, tell, teacher=teacher,
                max_bytes=measuring.limits.max_bytes, max_drop=measuring.limits.max_drop,
            )  # fmt: skip
            first = teacher or model  # a student is held against its teacher
            before = _before(first, making.counts if first is model else None, work, whole, progress)

            def exported(now: Model, name: str) -> Path:
                if before.shipped is not None and now is model is first:
                    return before.shipped.path
                return to_onnx(now, work / name, seed=whole.seed, progress=progress).path

            def fits(now: Model, chosen: list[Stage]) -> None:
                check(now, chosen, data, measuring)

            for place, stage in enumerate(stages):
                making.apply(stage, ctx, exported=exported, check=fits if place == 0 else None)
            whole = whole.of(making.stages, aimed_at(making.stages))
            result = ship(making.model, folder, export=whole.export, seed=whole.seed, progress=progress)
            after = Ready(making.model, result, making.counts, folder / WEIGHTS_NAME)
            log = RunLog(data, making.notes)
            report = report_on(before, after, output, whole, log, command=command, progress=progress)
            (folder / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
        finish(folder, making.model.card, model.source)
    return report


def refuse_states(stages: Sequence[Stage], output: Path) -> None:
    """Refuse a folder of a training's state that lies in the output.

    Raises:
        UsageError: It does.
    """
    for stage in stages:
        for state in named_by(stage, OUTPUT):
            refuse_within(Path(state), output)


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
    start = start_of(model)
    evaluated, export = measuring.source is not None, measuring.export
    check_measured(start, measuring.limits, evaluated=evaluated, benched=measuring.bench, export=export)
    for _, error in misfits(start, stages, data=data is not None, export=export):
        raise error


def start_of(model: Model) -> Start:
    """What the order of stages depends on."""
    now, history = form(model), model.card.history
    done = tuple(applied.name for applied in history)
    adapters = False
    for applied in history if now == "torch" else ():
        merged = applied.name in registry.rows() and registry.get(applied.name).takes_adapters
        adapters = not merged and (adapters or applied.facts.get("adapters") is not None)
    return Start(now, str(model.source), done, adapters, folder=model.source.is_dir())
