"""From one model to the next: a stage applied, and what ships of the result written into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compresskit.checkpoint.bundle import ONNX_NAME, WEIGHTS_NAME
from compresskit.checkpoint.onnx_metadata import describe
from compresskit.model import Model
from compresskit.runner.candidate import files_of
from compresskit.runner.prepare import Prepared, counted
from compresskit.stage import SIDECAR, Context, Form, Stage

_WORK = ".work"


@dataclass
class StageRunner:
    """A model on its way through stages.

    Attributes:
        model: As it is now.
        counts: Its parameters and multiply-accumulates; see :func:`compresskit.runner.prepare.counted`.
        stages: What was applied, with explicit options.
        notes: Why a stage that chooses among others took these.
    """

    model: Model
    counts: dict[str, Any]
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model) -> StageRunner:
        """A model that no stage was applied to yet."""
        return cls(model, counted(model))

    def apply(
        self,
        stage: Stage,
        ctx: Context,
        *,
        exported: Callable[[Model, str], Path],
        check: Callable[[Model, list[Stage]], None],
    ) -> None:
        """Apply a stage.

        Args:
            stage: One that chooses among others is replaced by its choice.
            ctx: What it may use.
            exported: Gives the ONNX file of a model, for a stage that works on such; its name may be the one given.
            check: Called with the model and the choice before it is carried out.

        Raises:
            CompressKitError: The model, the data or the machine doesn't allow it.
        """
        chosen = stage.choose(self.model, ctx)
        self.notes += chosen.notes
        check(self.model, list(chosen.stages))
        for step in chosen.stages:
            if form(self.model) == "torch" and "torch" not in step.takes:
                self.model = replace(self.model, body=exported(self.model, f"{step.method}.onnx"))
            with _whole(self.model):
                self.model = step.run(self.model, ctx)
            self.stages.append(step)
            if step.kind.changes_size:  # the others leave parameters and products as they are
                self.counts = counted(self.model)


def _whole(model: Model) -> AbstractContextManager[None]:
    """A stage sees all layers of a model called, whatever early exits it has."""
    if form(model) != "torch":
        return nullcontext()
    from compresskit.ops.route.exits import closed

    return closed(model.body)


def form(model: Model) -> Form:
    """``torch``, ``onnx`` or ``weights``."""
    if not isinstance(model.body, Path):
        return "torch"
    return "onnx" if model.body.suffix == ".onnx" else "weights"


def aimed_at(stages: list[Stage]) -> str | None:
    """The target that the last stage with such an option was given."""
    return next((name for stage in reversed(stages) if (name := stage.aims_at)), None)


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A folder for temporary files in one that is being written; what stages put beside the model is kept."""
    work = folder / _WORK
    work.mkdir()
    try:
        yield work
        for path in sorted((work / SIDECAR).iterdir()) if (work / SIDECAR).is_dir() else ():
            path.rename(folder / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def ship(model: Model, folder: Path, to_onnx: Callable[[Model, Path], Prepared] | None) -> Prepared | None:
    """Write what ships of a model: the ONNX file where there is one, the weights where they are the project's own.

    Args:
        model: Files of it that lie in ``folder`` already are moved.
        folder: From :func:`compresskit.checkpoint.atomic.new_folder`.
        to_onnx: Writes a model as ONNX at a path, unless it is ONNX already; None to write none.

    Returns:
        What runs; None where nothing does.

    Raises:
        GateError: The ONNX export computes something else than the model.
        MachineError: The disk is full or read-only.
    """
    if form(model) == "torch":
        from compresskit.runner.weights import write_config, write_weights

        if model.written is None:
            write_weights(model, folder / WEIGHTS_NAME)
        else:
            _moved(model.written, folder / model.written.name)
        write_config(model, folder)
    if form(model) == "weights" and isinstance(model.body, Path):
        model.body.rename(folder / WEIGHTS_NAME)
        return None
    if to_onnx is None:
        return None
    result = to_onnx(model, folder / ONNX_NAME)
    if result.path.parent != folder:
        result = replace(result, path=_moved(result.path, folder / ONNX_NAME))
    if result.proof is None:  # written by a stage; an export says its use already
        describe(result.path, model.card, model.source)
    return result


def _moved(path: Path, target: Path) -> Path:
    """Move files that have their final names already, since one names the others: external data, shards."""
    for part in reversed(list(files_of(path))):
        part.rename(target.with_name(part.name))
    return target
