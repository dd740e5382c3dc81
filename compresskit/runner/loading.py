"""Reading a MODEL with everything that was done to it replayed."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit import registry
from compresskit.errors import UsageError
from compresskit.model import Card, Model

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
    key: str | None = None,
    allow_nonfinite: bool = False,
    shipped: bool = False,
) -> Model:
    """Read a model.

    Args:
        path: A state dict (.pt, .pth, .th, .safetensors), a Hugging Face folder, a bundle, or an .onnx file.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code runs.
        arch_args: Keyword arguments of it.
        input_shape: Shape of the input; its first axis becomes the batch.
        key: Which of the state dicts that a ``torch.save`` file holds; keys one inside another are joined by points.
        allow_nonfinite: Accept NaN and Inf among the weights.
        shipped: Take a bundle as it ships: its ONNX file, without rebuilding the module.

    Returns:
        The model; ``body`` is the module where the architecture is known, else the path of an ONNX file or of tensors.

    Raises:
        InputError: The file is damaged, hostile, or doesn't fit the architecture.
        UsageError: The architecture's own code fails, or is needed and not given; there is nothing under ``key``.
    """
    from compresskit.checkpoint.load import load as read

    return read(
        Path(path),
        arch=arch,
        arch_args=arch_args,
        input_shape=input_shape,
        key=key,
        allow_nonfinite=allow_nonfinite,
        shipped=shipped,
        replay=replay,
    )


def load_module(path: Path, **options: Any) -> nn.Module:
    """As :func:`load`, for the torch runtime: packed layers run through the fastest kernel there is.

    Raises:
        UsageError: The architecture isn't known.
    """
    model = load(path, **options)
    if isinstance(model.body, Path):
        raise UsageError(f"{path} does not say how to build the module", "give --arch FILE.py:NAME")
    from compresskit.ops.quantize.fast import speed_up

    for reason, count in Counter(speed_up(model.body).values()).items():
        _log.warning(
            "%s: %d layers are slow under torch, their weights are unpacked in each call: %s", path, count, reason
        )
    return model.body


def replay(module: nn.Module, card: Card, tensors: Tensors) -> Tensors:
    """Give a module the shape that the card's history gave it; returns the tensors to load."""
    for applied in card.history:
        tensors = registry.get(applied.name).replay(module, applied.facts, tensors)
    return tensors
