"""Reading a MODEL with everything that was done to it replayed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit import registry
from compresskit.errors import UsageError
from compresskit.facts import Facts, read_facts
from compresskit.model import Card, Model
from compresskit.stage import Stage

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors

_log = logging.getLogger("compresskit.runner")


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    batch_axis: Mapping[str, int | None] | None = None,
    key: str | None = None,
    allow_nonfinite: bool = False,
    shipped: bool = False,
) -> Model:
    """Read a model.

    Args:
        path: A state dict (.pt, .pth, .th, .safetensors), a Hugging Face folder, a bundle, or an .onnx file.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code runs.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the input; its first axis becomes the batch.
        batch_axis: The axis that samples lie along, by the inputs of an ONNX file; None for one that all samples share.
        key: Which of the state dicts that a ``torch.save`` file holds; keys one inside another are joined by points.
        allow_nonfinite: Accept NaN and Inf in the weights.
        shipped: Take a bundle as it ships: its ONNX file, without rebuilding the module.

    Returns:
        The model; ``body`` is the module where the architecture is known, else the path of an ONNX file or of tensors.

    Raises:
        InputError: The file is damaged, hostile, or doesn't fit the architecture.
        UsageError: The architecture's own code fails, or is needed and not given; there is nothing under ``key``.
    """
    from compresskit.checkpoint.load import load as read

    model = read(
        Path(path),
        arch=arch,
        arch_args=arch_args,
        input_shape=input_shape,
        batch_axis=batch_axis,
        key=key,
        allow_nonfinite=allow_nonfinite,
        shipped=shipped,
        replay=partial(_replay, Path(path)),
    )
    history_facts(model.card, path)
    return model


def load_for(
    path: str | Path,
    stages: Sequence[Stage],
    *,
    export: bool,
    data: bool = False,
    limited: bool = False,
    **options: Any,
) -> Model:
    """Read a model to be changed; its weights stay on disk where nothing needs more of them than one at a time.

    Args:
        path: As for :func:`load`.
        stages: What it is read for.
        export: It will be written as ONNX.
        data: The stages get data.
        limited: The user set limits of size or quality.
        options: Keyword arguments of :func:`load`.

    Raises:
        CompressKitError: As :func:`load`.
    """
    from compresskit.checkpoint.huggingface_stream import describe_huggingface
    from compresskit.checkpoint.load import kind_of
    from compresskit.checkpoint.mapped import map_huggingface

    nonfinite = options.get("allow_nonfinite", False)
    plain = not any(value for name, value in options.items() if name != "allow_nonfinite")
    if not export and plain and len(stages) == 1 and kind_of(path) == "huggingface":
        ways = {"streamed": describe_huggingface, "mapped": map_huggingface}
        way = ways.get(stages[0].reads(data=data, limited=limited))
        found = None if way is None else way(Path(path), allow_nonfinite=nonfinite)
        if found is not None:
            return found
    return load(path, **options)


def load_shipped(
    path: Path, options: dict[str, Any] | None = None, *, several: bool = False, runtime: str = "onnxruntime"
) -> Model:
    """Read a model to be measured, as it ships.

    Args:
        path: As for :func:`load`.
        options: Keyword arguments of :func:`load`.
        several: One of several models: then architecture and shape of the input are for those that need them.
        runtime: torch rebuilds a bundle's module, the others run its ONNX file.
    """
    from compresskit.checkpoint.load import kind_of
    from compresskit.runtimes import runs_modules

    own = dict(options or {})
    rebuilt = runs_modules(runtime) and kind_of(path) == "bundle"
    if several and kind_of(path) != "tensors" and not rebuilt:
        own |= {"arch": None, "arch_args": {}, "input_shape": None, "key": None}
        own |= {"batch_axis": own.get("batch_axis") if kind_of(path) in ("onnx", "bundle") else None}
    return load(path, **own, shipped=not rebuilt)


def load_module(path: Path, **options: Any) -> nn.Module:
    """As :func:`load`, for the torch runtime: packed layers run through the fastest kernel there is.

    Raises:
        UsageError: The architecture isn't known.
    """
    model = load(path, **options)
    if isinstance(model.body, Path):
        raise UsageError(f"{path} does not say how to build the module", "give `arch` FILE.py:NAME")
    from compresskit.ops.quantize.fast import speed_up

    for reason, count in Counter(speed_up(model.body).values()).items():
        _log.warning(
            "%s: %d layers are slow under torch, their weights are unpacked in each call: %s", path, count, reason
        )
    return model.body


def history_facts(card: Card, origin: str | Path) -> list[Facts]:
    """What each stage of a card's history recorded, in order.

    Args:
        card: The card.
        origin: Where it is from, for the errors.

    Raises:
        InputError: It isn't what the stage records. Of a stage that isn't installed only what all record is looked at.
    """
    found = []
    for number, applied in enumerate(card.history, 1):
        known = applied.name in registry.rows()
        kind = registry.get(applied.name).facts if known else Facts
        what = f"{origin}: step {number} of the card's history, {applied.name}"
        found.append(read_facts(kind, applied.facts, what, strict=known))
    return found


def _replay(origin: Path, module: nn.Module, card: Card, tensors: Tensors) -> Tensors:
    """Give a module the shape that the card's history gave it; returns the tensors to load."""
    for applied, facts in zip(card.history, history_facts(card, origin), strict=True):
        tensors = registry.get(applied.name).replay(module, facts, tensors)
    return tensors
