"""A model whose layers' outputs can be seen, and the one that is a module."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.calibration.trace import chain, tensors_in, trace

OUTPUT = "(output)"
"""The name of the model's own first output."""


@dataclass(frozen=True)
class Layer:
    """A layer of a model.

    Attributes:
        kind: Class of the module, or operator.
        values: Names of what may be its output, the nearest first: a normalization that another form of the model may
            have folded into the layer gives one too.
    """

    kind: str
    values: tuple[str, ...]


class Side(Protocol):
    """One of the two models.

    Attributes:
        layers: By name, in the order of their calls.
    """

    layers: dict[str, Layer]

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        """What the layers give for a batch, by the names of values, and :data:`OUTPUT`."""
        ...


class TorchSide:
    """A module.

    Args:
        module: In eval mode.
        forward: Calls it.
        example: A small batch.
    """

    def __init__(self, module: nn.Module, forward: Forward, example: Batch) -> None:
        self.module, self._forward = module, forward
        with torch.no_grad():
            found = trace(module, lambda: forward(module, example))
        once = found.once()
        blocks = set(chain(module, found))
        norms_there = {name for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
        self.layers: dict[str, Layer] = {}
        for name in once:
            part = module.get_submodule(name)
            own = any(True for _ in part.parameters(recurse=False)) or any(True for _ in part.buffers(recurse=False))
            if not name or not (own or name in blocks):
                continue
            behind = found.consumers(name)
            norms = behind & norms_there if len(behind) == 1 else ()
            self.layers[name] = Layer(type(part).__name__, (name, *norms))

    @torch.no_grad()
    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        """See :class:`Side`."""
        seen: dict[str, np.ndarray] = {}

        def note(name: str, _layer: nn.Module, _args: Any, out: Any) -> None:
            first = next(tensors_in(out), None)
            if first is not None and first.is_floating_point():
                seen[name] = first.detach().float().numpy(force=True).copy()  # a model may write into it

        with ExitStack() as stack:
            for name in {value for layer in self.layers.values() for value in layer.values}:
                hook = self.module.get_submodule(name).register_forward_hook(partial(note, name))
                stack.callback(hook.remove)
            out = self._forward(self.module, batch)
        seen[OUTPUT] = next(tensors_in(out)).float().numpy(force=True)
        return seen
