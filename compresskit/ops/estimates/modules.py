"""The inventory of a module, and the grids that weight-only quantization would choose for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compresskit.ops.estimates.ranks import break_even
from compresskit.ops.estimates.sizes import Inventory, Kind, Weight
from compresskit.ops.packed.layout import Grid
from compresskit.ops.packed.modules import PackedLayer, same_tensor
from compresskit.ops.quantize.opened import opened
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.weights import plan_layers

_FUSED, _WRITTEN_OUT = 700, 1900
"""Bytes of the operators of one attention: torch's own, and that of a transformers model."""


def inventory_of(module: nn.Module, macs: Mapping[str, int | None]) -> Inventory:
    """What the file of a module is made of.

    Args:
        module: In floating point.
        macs: Multiply-accumulates of one sample by layer; layers that aren't in it aren't known.
    """
    owners: dict[tuple[Any, ...], str] = {}
    weights: dict[str, Weight] = {}
    for name, layer in module.named_modules():
        kind, weight = _weight(layer)
        if kind is None or weight is None or not weight.numel() or not weight.is_floating_point():
            continue
        owner = owners.setdefault(same_tensor(weight), name)
        first = weights.get(owner)
        if first is None:
            weights[name] = Weight(name, kind, tuple(weight.shape), weight.element_size(), macs.get(name))
        else:
            shared = first.shared or first.kind != kind
            known = None if None in (first.macs, macs.get(name)) else (first.macs or 0) + (macs.get(name) or 0)
            linear: Kind = "linear" if "linear" in (first.kind, kind) else first.kind
            weights[owner] = Weight(owner, linear, first.shape, first.itemsize, known, shared)
    stored = {
        same_tensor(tensor): tensor.numel() * tensor.element_size()
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor) and not name.endswith("num_batches_tracked")
    }
    rest = sum(size for key, size in stored.items() if key not in owners)
    return Inventory(tuple(weights.values()), rest, _folded(module), attention=_attention(module))


def grids_of(module: nn.Module, selection: Selection) -> dict[str, Grid]:
    """The grid of each layer that would be quantized; a shared weight once.

    Raises:
        InputError: There is no layer that could be quantized.
    """
    with opened(module):
        plan = plan_layers(module, selection)
    return {name: grid for name, grid in plan.grids.items() if name not in plan.ties}


def quantized(module: nn.Module) -> bool:
    """True where a layer holds codes already."""
    return any(isinstance(layer, PackedLayer) for layer in module.modules())


def ranks_of(module: nn.Module) -> dict[str, dict[str, int]]:
    """Break-even ranks of the layers that ``factorize`` takes: Linear and ungrouped convolutions of one or two axes."""
    found = {}
    for name, layer in module.named_modules():
        plain = isinstance(layer, nn.Linear) or (isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == 1)
        weight = layer._parameters.get("weight")
        if name and plain and weight is not None and weight.is_floating_point() and weight.numel():
            found[name] = break_even(tuple(weight.shape))
    return found


def _weight(layer: nn.Module) -> tuple[Kind | None, Tensor | None]:
    if isinstance(layer, nn.MultiheadAttention):
        return "linear", layer._parameters.get("in_proj_weight")
    weight = layer._parameters.get("weight")
    if isinstance(layer, nn.Linear):
        return "linear", weight
    if isinstance(layer, _ConvNd):
        return "conv", weight
    return ("embedding", weight) if isinstance(layer, nn.Embedding) else (None, None)


def _attention(module: nn.Module) -> int:
    """Bytes of operators of modules that call themselves attention and hold projections, as seen in files."""
    named = [m for m in module.modules() if "attention" in type(m).__name__.lower()]
    holders = [m for m in named if any(isinstance(child, nn.Linear) for child in m.children())]
    return sum(_FUSED if isinstance(m, nn.MultiheadAttention) else _WRITTEN_OUT for m in holders)


def _folded(module: nn.Module) -> int:
    """Bytes that batch normalizations take beyond the bias that a convolution gets of them."""
    bare = any(isinstance(m, _ConvNd) and m.bias is None for m in module.modules())
    size = 0
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            own = [t for n, t in layer.state_dict().items() if n != "num_batches_tracked"]
            size += sum(t.numel() * t.element_size() for t in own)
            size -= own[0].numel() * own[0].element_size() if own and bare else 0
    return size
