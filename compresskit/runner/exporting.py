"""Export alone: one ONNX file behind the parity gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.benchmark.machine import environment
from compresskit.checkpoint.atomic import new_file, refuse_same
from compresskit.errors import UsageError
from compresskit.model import Model, portable
from compresskit.report import Gate, Report, judge
from compresskit.runner.candidate import Candidate
from compresskit.runner.prepare import counted, to_onnx, with_inputs, with_usage
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source


def export(
    model: Model,
    target: Path,
    *,
    data: Source | None = None,
    seed: int = 0,
    force: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> Report:
    """Write a model as ONNX.

    Args:
        model: What was read.
        target: The file; weights past 2 GB go to ``<target>.data`` beside it.
        data: Its samples are tried in the file first; it tells the shape of the input where the model doesn't.
        seed: Of the parity gate's inputs.
        force: Overwrite an existing file.
        command: How the user asked for this.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        A report whose one gate is the parity: PASS, since a miss raises, or INCONCLUSIVE where no input could tell.

    Raises:
        GateError: The outputs of the file would differ from the model's; nothing is written.
        UsageError: The model is ONNX already, or its architecture or inputs aren't known.
        InputError: The model can't be exported.
    """
    refuse_same(model.source, target)
    if isinstance(model.body, Path) and model.body.suffix == ".onnx":
        raise UsageError(f"{model.source} is ONNX already")
    model = with_usage(with_inputs(model, data), data)
    counts = counted(model)
    with new_file(target, force=force) as place:
        result = to_onnx(model, place, data=data, seed=seed, progress=progress)
        data_file = place.with_name(f"{target.name}.data")
        if data_file.exists():
            data_file.replace(target.with_name(data_file.name))
    gates = [result.proof] if result.proof else []
    return report_of(model, target, gates, result.notes, command, **counts)


def report_of(model: Model, place: Path, gates: list[Gate], notes: list[str], command: str, **counts: Any) -> Report:
    """The report of a file or folder that was written, with the gates that it passed.

    Args:
        model: What was written.
        place: Where.
        gates: Of the format.
        notes: What a user must know.
        command: How the user asked for this.
        counts: ``parameters`` and ``macs``, where known.
    """
    new = Candidate(place.name, place, portable(place), model.card.inputs, **counts)
    return Report(
        command=command,
        verdict=judge(gates, verified=True),
        models=[new.entry()],
        gates=gates,
        notes=notes,
        environment=environment(),
    )
