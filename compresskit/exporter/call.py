"""Calling any module the same way: tensors in by input name, tensors out by output name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compresskit.errors import InputError, MachineError
from compresskit.exporter.quiet import first_line
from compresskit.model import InputSpec
from compresskit.runtimes.torch import flatten


class Flat(nn.Module):
    """A module as a function of positional tensors that returns a tuple of tensors.

    ``names`` holds the names of the outputs after the first call; they are those of the torch runtime.
    """

    def __init__(self, module: nn.Module, inputs: tuple[InputSpec, ...]) -> None:
        super().__init__()
        self.module = module
        self.keys = tuple(spec.name for spec in inputs)
        self.names: tuple[str, ...] = ()
        accepted = _accepted(module)
        self.by_name = accepted is None or set(self.keys) <= accepted
        caches = hasattr(getattr(module, "config", None), "use_cache")
        takes = accepted is None or "use_cache" in accepted
        self.extra: dict[str, Any] = {"use_cache": False} if caches and takes and self.by_name else {}

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        """The module's tensors, in the order of ``names``."""
        if self.by_name:
            out = self.module(**dict(zip(self.keys, args, strict=True)), **self.extra)
        else:
            out = self.module(*args)
        named = flatten(out)
        self.names = tuple(named)
        return tuple(named.values())


def _accepted(module: nn.Module) -> set[str] | None:
    """The keywords that ``forward`` takes; None when it takes any."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode without gradients; each submodule's flag is put back afterwards."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, flag in flags:
            layer.training = flag


def device_of(module: nn.Module) -> torch.device:
    """Where the module's tensors are; the CPU when it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def call(flat: Flat, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One call in eval mode.

    Raises:
        InputError: The model can't be called with its inputs, or returns no tensor.
        MachineError: Out of memory.
    """
    try:
        with evaluating(flat):
            out: tuple[Tensor, ...] = flat(*args)
    except Exception as error:  # a user's forward may raise anything
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise MachineError(f"not enough memory to run the model: {first_line(error)}") from error
        given = ", ".join(
            f"{key} {str(a.dtype).removeprefix('torch.')} {list(a.shape)}"
            for key, a in zip(flat.keys, args, strict=True)
        )
        raise InputError(
            f"the model failed when called with {given}: {type(error).__name__}: {first_line(error)}",
            "check the names, shapes and types of its inputs (`input_shape`)",
        ) from error
    if not out:
        raise InputError(
            "the model returns no tensor", "its forward must return a tensor, or a tuple or dict of tensors"
        )
    return out
