"""Writing a language model in the formats of other programs, behind a gate of each format's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.atomic import new_file, new_folder, refuse_same
from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.report import Report
from compresskit.runner.exporting import report_of
from compresskit.stage import Progress, Stage, silent

if TYPE_CHECKING:
    from compresskit.exporter.targets.target import Target
    from compresskit.ops.packed.layout import Grid


def open_targets(names: Iterable[str]) -> list[Target]:
    """The targets of these names, each once.

    Raises:
        UsageError: There is none of a name.
    """
    from compresskit.exporter.targets import get

    return [get(name) for name in dict.fromkeys(names)]


def beside(target: Target, output: Path) -> Path:
    """Where a target's file or folder lies: beside the bundle or the name that was given, ``out.gguf``."""
    return output.with_name(f"{output.name}{target.ending}")


def check_targets(model: Model, targets: Sequence[Target], stages: Sequence[Stage]) -> None:
    """Refuse, before any work, stages whose result a target can't carry.

    Raises:
        UsageError: Names what can't be carried.
        InputError: The tokenizer or the sizes have no place in a target.
        MachineError: A target's library isn't installed.
    """
    for target in targets:
        target.check(model)
        for stage in stages:
            if stage.gives not in ("same", "torch"):
                raise UsageError(f"`to` {target.name} takes codes of weights, `method` {stage.method} gives ONNX files")
            target.check(model, _planned(stage, model))


def _planned(stage: Stage, model: Model) -> Iterator[tuple[str, Grid]]:
    """What codes will mean, by layers, as far as a stage's options tell."""
    from torch import nn

    from compresskit.ops.packed.nf4 import nf4_grid
    from compresskit.stages.coded import CodedWeights
    from compresskit.stages.quantize_auto import QuantizeAuto
    from compresskit.stages.quantize_nf4 import QuantizeNf4

    selections = []
    if isinstance(stage, QuantizeAuto):  # any layer may get either
        widths = (stage.bits or 4, 4 if stage.bits in (None, 4) and stage.preset == "fast" else 8)
        selections = [stage.selection(bits) for bits in dict.fromkeys(widths)]
    if isinstance(stage, QuantizeNf4):
        yield "layers in nf4", nf4_grid(stage.group_size)
    if isinstance(stage, CodedWeights):
        selections = [stage.selection()]
    for selection in selections:
        for name, layer in model.module.named_modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                shape = tuple(layer.weight.shape)
                if selection.reason_against(name, shape, layer.weight.element_size()) is None:
                    yield name, selection.grid_for(name, shape)


def export_to(
    model: Model,
    target: Target,
    place: Path,
    *,
    force: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> Report:
    """Write a model for a target.

    Args:
        model: What was read.
        target: Which format.
        place: The file or folder to write.
        force: Replace what is there.
        command: How the user asked for this.
        progress: Called now and then.

    Returns:
        A report with the gates of the format.

    Raises:
        GateError: What was written isn't what the model is; nothing stays.
        UsageError: The format can't carry the model.
        InputError: Something in the model has no place in the format.
        MachineError: The format's library isn't installed, or the disk is full.
    """
    refuse_same(model.source, place)
    target.check(model, _packed(model))
    staged: Any
    if target.marker is None:
        staged = new_file(place, force=force)
    else:
        staged = new_folder(place, force=force, ours=lambda folder: (folder / str(target.marker)).is_file())
    with staged as path:
        written = target.write(model, path, progress)
    parameters = sum(p.numel() for p in model.module.parameters())
    return report_of(model, place, written.gates, written.notes, command, parameters=parameters)


def _packed(model: Model) -> list[tuple[str, Grid]]:
    """What codes mean, by the layers of a module that are packed; none where it is none."""
    from compresskit.ops.packed.modules import PackedLayer

    if isinstance(model.body, Path):
        return []
    return [(name, layer.grid) for name, layer in model.body.named_modules() if isinstance(layer, PackedLayer)]
