"""A module whose large weights stay in the file in half precision: each is float32 while its layer is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.huggingface import build_from_config
from compresskit.checkpoint.huggingface_stream import ModuleTensors, describe_huggingface
from compresskit.model import Model

if TYPE_CHECKING:
    from torch import nn

COMPUTES = "computes"
"""The attribute by which a layer says that it multiplies in another dtype than its weight has."""
_NARROW = "_narrow"


def map_huggingface(folder: Path, *, allow_nonfinite: bool = False) -> Model | None:
    """As :func:`~compresskit.checkpoint.huggingface.load_huggingface`, the matrices as views of the file map.

    Args:
        folder: See there.
        allow_nonfinite: See there.

    Returns:
        None where the folder has no causal language model, not every tensor in its own shape and name, or layers whose
        weight can't be taken as it lies in the file.

    Raises:
        InputError: The config or the weights are damaged, hostile or not supported.
        MachineError: transformers is not installed.
    """
    found = describe_huggingface(folder, allow_nonfinite=allow_nonfinite)
    if found is None or found.card.task != "causal-lm" or not isinstance(found.weights, ModuleTensors):
        return None
    if found.half is None or found.weights.converted or any(map(_foreign, found.module.modules())):
        return None
    module = build_from_config(folder)
    _fill(module, found.weights, found.half)
    return replace(found, body=module, weights=None)


def _foreign(layer: nn.Module) -> bool:
    """True for layers with matrices that aren't called with what they are: Conv1D, and bare parameters."""
    from torch import nn

    return any(
        parameter is not None and parameter.dim() > 1 and not (leaf == "weight" and _known(layer, nn))
        for leaf, parameter in layer._parameters.items()
    )


def _known(layer: nn.Module, nn: Any) -> bool:
    return isinstance(layer, (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d))


def _fill(module: nn.Module, tensors: ModuleTensors, half: str) -> None:
    import torch
    from torch import nn

    placed: dict[int, nn.Parameter] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) in placed or name not in tensors:
            continue
        stored = tensors.get(name)
        if value.dim() > 1 and str(stored.dtype) == f"torch.{half}":
            placed[id(value)] = nn.Parameter(stored, requires_grad=False)
        else:
            value.data.copy_(stored)
    for layer in module.modules():
        mapped = {leaf: placed[id(p)] for leaf, p in layer._parameters.items() if id(p) in placed}
        if mapped:
            layer._parameters.update(mapped)
            setattr(layer, COMPUTES, torch.float32)
            layer.register_forward_pre_hook(_widen)
            layer.register_forward_hook(_narrow, always_call=True)
    tensors.release()


def _widen(layer: nn.Module, _args: Any) -> None:
    from torch import nn

    dtype = getattr(layer, COMPUTES)
    setattr(layer, _NARROW, dict(layer._parameters))
    for leaf, parameter in layer._parameters.items():
        if parameter is not None and parameter.dtype != dtype:
            layer._parameters[leaf] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)


def _narrow(layer: nn.Module, _args: Any, _out: Any) -> None:
    layer._parameters.update(getattr(layer, _NARROW))
    delattr(layer, _NARROW)
