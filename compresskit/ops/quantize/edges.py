"""The first and the last layer of a model: those that few bits hurt most, and that weigh least."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.calibration.trace import trace

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def edge_layers(module: nn.Module, forward: Forward, batch: Batch, *, most: float) -> list[str]:
    """Names of the first and the last Linear or convolution that a forward pass calls.

    Args:
        module: In eval mode.
        forward: Calls the module with a batch.
        batch: Any inputs.
        most: Share of all layers' weights that the two may hold together, 0 to 1; if they hold more there are none.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, (*_KINDS, nn.Embedding))}
    sizes = {name: layer.get_parameter("weight").numel() for name, layer in layers.items() if _plain(layer)}
    called = [n for group in trace(module, partial(forward, module, batch)).groups(sizes) for n in group]
    found = list(dict.fromkeys(called[:1] + called[-1:]))
    total = sum(p.numel() for layer in layers.values() for p in layer.parameters(recurse=False))
    return found if total and sum(sizes[n] for n in found) <= most * total else []


def _plain(layer: nn.Module) -> bool:
    return isinstance(layer, _KINDS) and isinstance(layer._parameters.get("weight"), nn.Parameter)
