"""Export with proof: a file stands under the final name only when it passed the parity check."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from compresskit.checkpoint.atomic import writing
from compresskit.errors import GateError
from compresskit.exporter.accuracy import set_accuracy_level
from compresskit.exporter.kept import KeptGraph
from compresskit.exporter.onnx_export import Exported, export_kept, export_onnx
from compresskit.exporter.parity import USUAL, Parity, ParityCheck, parity
from compresskit.exporter.slim import DATA_ABOVE
from compresskit.model import InputSpec
from compresskit.stage import Progress, silent

LEVEL = 4


@dataclass(frozen=True)
class ExportResult:
    """An exported file and its proof.

    Attributes:
        path: The file; external data lie beside it as ``<name>.data``.
        parity: Of the file, or for packed matrix products of the same file at ``accuracy_level`` 0.
        distance_level4: Of the file that ships, where it rounds activations to int8; None where it doesn't.
        outputs: Names of the outputs.
        notes: What a user should know.
        operators: How many packed layers became which operator.
        graph: From which later states of the module are exported without a trace.
    """

    path: Path
    parity: Parity
    distance_level4: Parity | None
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    operators: dict[str, int]
    graph: KeptGraph | None = None


def export_checked(
    module: nn.Module,
    inputs: tuple[InputSpec, ...],
    path: Path,
    check: ParityCheck = USUAL,
    *,
    accuracy_level: int = LEVEL,
    data_above: int = DATA_ABOVE,
    progress: Progress = silent,
) -> ExportResult:
    """Export a module, compare the file with it, and only then put the file in place.

    Args:
        module: Any module, with or without packed layers; stays as it is.
        inputs: What it takes.
        path: The final name; replaced if it exists.
        check: Compares the file with the module.
        accuracy_level: What the shipped file's 4- and 8-bit matrix products use: 0 is float32, 4 is int8 activations.
        data_above: Bytes of weights from which on they go to ``<name>.data``.
        progress: Told of the steps.

    Raises:
        GateError: The file computes something else than the module; no file is left.
        InputError: The model can't be exported.
        MachineError: The file can't be written.
    """
    export = partial(export_onnx, module, inputs, data_above=data_above, progress=progress)
    found = _proven(module, export, path, check, accuracy_level, progress)
    if found is None:
        raise TypeError("a trace gives a file, or an error")
    exported, proof, result = found
    if result is None:
        raise GateError(
            f"the ONNX file differs from the model: {proof.worst}: relative L2 {proof.rel_l2:.2g} (limit "
            f"{check.relative:.2g}), largest difference {proof.max_abs:.2g} (limit {check.absolute:.2g})",
            _advice(exported.suspects),
        )
    return result


def export_kept_checked(
    graph: KeptGraph, module: nn.Module, path: Path, check: ParityCheck = USUAL, *, progress: Progress = silent
) -> ExportResult | None:
    """As :func:`export_checked`, from the graph of an earlier state of the module and without a trace.

    Args:
        graph: Of an earlier state.
        module: Its layers may have been packed since; stays as it is.
        path: The final name; replaced if it exists.
        check: Compares the file with the module.
        progress: Told of the steps.

    Returns:
        None, and no file, where the graph doesn't tell what the module computes.

    Raises:
        MachineError: The file can't be written.
    """
    found = _proven(module, partial(export_kept, graph, module), path, check, LEVEL, progress)
    return None if found is None else found[2]


def _proven(
    module: nn.Module,
    export: Callable[..., Exported | None],
    path: Path,
    check: ParityCheck,
    accuracy_level: int,
    progress: Progress,
) -> tuple[Exported, Parity, ExportResult | None] | None:
    """Export beside the final name, and put the file in place if it computes what the module does.

    Returns:
        What was exported, its proof, and the result where that holds; None where nothing was exported.
    """
    with writing(path):
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        draft = work / path.name
        exported = export(path=draft)
        if exported is None:
            return None
        compare = partial(
            parity, module, draft, exported.inputs, check, limits=exported.limits, progress=progress
        )  # fmt: skip
        proof = compare()
        if proof.passed is False:
            return exported, proof, None
        distance = None
        if accuracy_level and set_accuracy_level(draft, accuracy_level):
            distance = compare(exact=False)
        _move(draft, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    notes = (*exported.notes, *proof.notes)
    result = ExportResult(path, proof, distance, exported.outputs, notes, exported.operators, exported.graph)
    return exported, proof, result


def _advice(suspects: tuple[str, ...]) -> str:
    """What to do about a file that was refused; an operator is blamed only where one was found."""
    if suspects:
        return f"{', '.join(suspects)} has a wrong ONNX form: replace it"
    return "the cause was not found: export parts of the model to find it, or use `no_export`"


def _move(draft: Path, path: Path) -> None:
    """Data first: a model without its data would be worse than the old one."""
    with writing(path):
        data = draft.with_name(f"{draft.name}.data")
        if data.exists():
            data.replace(path.with_name(data.name))
        draft.replace(path)
