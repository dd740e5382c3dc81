"""The teacher that a stage names: any MODEL, read, with its inputs known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.runner.loading import load
from compresskit.runner.prepare import forward_names
from compresskit.stage import Stage
from compresskit.usage import Usage


def teacher_of(stage: Stage, student: Model) -> Model | None:
    """Read the teacher that a stage names; None where it names none.

    Args:
        stage: With its options.
        student: Its inputs and usage are the teacher's where the teacher's own are not known.

    Raises:
        InputError: The file is damaged, hostile, or doesn't fit its architecture.
        UsageError: Its architecture is needed and not given.
    """
    named = stage.learns_from
    if named is None:
        return None
    if named.arch_args is not None and not named.arch:
        raise UsageError("`teacher_arch_args` is for `teacher_arch`, which is not given")
    model = load(named.model, arch=named.arch, arch_args=named.arch_args, key=named.key)
    if model.card.task == "unknown":
        model = replace(model, card=replace(model.card, task=student.card.task))
    if model.card.usage == Usage():
        model = replace(model, card=replace(model.card, usage=student.card.usage))
    if isinstance(model.body, Path) and model.body.suffix != ".onnx":
        raise UsageError(
            f"the teacher {named.model} is tensors without an architecture", "give `teacher_arch` FILE.py:NAME"
        )
    if model.card.inputs:
        return model
    names = forward_names(model)
    specs = student.card.inputs
    if any(spec.name not in names for spec in specs):
        specs = tuple(replace(spec, name=name) for spec, name in zip(specs, names, strict=False))
    return replace(model, card=replace(model.card, inputs=specs))
