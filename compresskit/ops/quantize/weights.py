"""Weight-only quantization of a module, and its replay from the recorded facts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.ops.quantize.grid import Grid, Packed, sqnr
from compresskit.ops.quantize.modules import PackedLayer, grid_of, packable, packed_twin, set_module
from compresskit.ops.quantize.select import Selection

Algorithm = Callable[[Tensor, Grid], Packed]


def quantize_module(
    module: nn.Module, selection: Selection, algorithm: Algorithm, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Replace the module's layers by packed ones, in place.

    Args:
        module: Any module; layers that share a weight go on sharing it.
        selection: Which layers, and their grid.
        algorithm: Weight and grid to codes.
        progress: Called after each layer.

    Returns:
        The facts, ``{"layers": {name: …}, "ties": {name: first name}}``, and the layers left alone with the reason.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: There is no layer that could be quantized.
    """
    layers = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if _matrix(layer) is not None}
    selection.check(layers)
    skipped = _bare_parameters(module)
    skipped |= {name: "quantized already" for name, layer in module.named_modules() if isinstance(layer, PackedLayer)}
    chosen: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        weight = _matrix(layer)
        reason = packable(layer) or (
            None if weight is None else selection.reason_against(name, tuple(weight.shape), weight.element_size())
        )
        if reason:
            skipped[name] = reason
        else:
            chosen[name] = layer
    if not chosen:
        raise InputError(_nothing(layers, skipped), "what compresskit can do with a model: compresskit inspect MODEL")
    facts: dict[str, Any] = {}
    ties: dict[str, str] = {}
    first: dict[int, tuple[str, Packed]] = {}
    for done, (name, layer) in enumerate(chosen.items(), 1):
        weight = layer.get_parameter("weight")
        key = weight.data_ptr()
        if key in first:
            ties[name], packed = first[key]
        else:
            packed = named(name, partial(algorithm, weight, selection.grid(tuple(weight.shape))))
            first[key] = (name, packed)
        facts[name] = facts[ties[name]] if name in ties else fact(type(layer).__name__, packed, weight)
        set_module(module, name, packed_twin(layer, packed))
        progress("quantize", done, len(chosen))
    return {"layers": facts, "ties": ties}, skipped


def named(name: str, compute: Callable[[], Packed]) -> Packed:
    """Run one layer's quantization; its error names the layer."""
    try:
        return compute()
    except InputError as error:
        raise InputError(f"layer '{name}': {error.message}", error.hint) from error


def fact(kind: str, packed: Packed, weight: Tensor) -> dict[str, Any]:
    """What the card records of one layer: enough to rebuild it empty, and the weight's SQNR in dB."""
    grid = packed.grid
    return {
        "kind": kind,
        "bits": grid.bits,
        "group_size": grid.group_size,
        "symmetric": grid.symmetric,
        "shape": list(packed.shape),
        "scales": str(packed.scales.dtype).removeprefix("torch."),
        "sqnr": round(sqnr(weight, packed), 1),
    }


def replay(module: nn.Module, facts: dict[str, Any]) -> dict[str, Packed]:
    """Rebuild the packed layers of a module from a card's facts; the tensors are loaded afterwards.

    Args:
        module: The original architecture; changed in place.
        facts: What :func:`quantize_module` returned.

    Returns:
        Empty packed weights of the layers that stay plain here (this architecture has no packed form for them):
        the caller fills them and stores :func:`~compresskit.ops.quantize.grid.dequantize` of them as weights.

    Raises:
        InputError: A layer that the facts name is not in this architecture, or has another shape.
    """
    plain: dict[str, Packed] = {}
    twins: dict[str, PackedLayer] = {}
    for name, data in facts["layers"].items():
        layer = _layer(module, name, tuple(data["shape"]))
        packed = _empty(data)
        if packable(layer) is not None:
            plain[name] = packed
            continue
        tied = twins.get(facts["ties"].get(name, ""))
        twins[name] = packed_twin(layer, tied.packed if tied is not None else packed)
        set_module(module, name, twins[name])
    return plain


def _empty(data: dict[str, Any]) -> Packed:
    grid, shape = grid_of(data), tuple(int(n) for n in data["shape"])
    groups, _, nbytes = grid.layout(int(torch.Size(shape[1:]).numel()))
    zero_bytes = (groups * grid.bits + 7) // 8
    return Packed(
        codes=torch.empty(shape[0], groups, nbytes, dtype=torch.uint8),
        scales=torch.empty(shape[0], groups, dtype=getattr(torch, data["scales"])),
        zeros=None if grid.symmetric else torch.empty(shape[0], zero_bytes, dtype=torch.uint8),
        shape=shape,
        grid=grid,
    )


def _layer(module: nn.Module, name: str, shape: tuple[int, ...]) -> nn.Module:
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        raise InputError(f"the architecture has no layer '{name}', which the quantized weights are for") from None
    found = tuple(layer.get_parameter("weight").shape)
    if found != shape:
        raise InputError(f"layer '{name}': the quantized weight is {shape}, the architecture's is {found}")
    return layer


def _matrix(layer: nn.Module) -> Tensor | None:
    """The layer's own weight where it has one of two axes or more."""
    weight = layer._parameters.get("weight")
    if weight is None or weight.dim() < 2 or not weight.is_floating_point():
        return None
    return weight


def _bare_parameters(module: nn.Module) -> dict[str, str]:
    """Parameters of two axes or more that are no layer's ``weight``: positions, recurrent and fused projections."""
    found: dict[str, str] = {}
    for prefix, layer in module.named_modules():
        for leaf, parameter in layer._parameters.items():
            if leaf != "weight" and parameter is not None and sum(n > 1 for n in parameter.shape) >= 2:
                found[f"{prefix}.{leaf}" if prefix else leaf] = f"a parameter of {type(layer).__name__}, not a layer"
    return found


def _nothing(layers: dict[str, nn.Module], skipped: dict[str, str]) -> str:
    if not layers and not skipped:
        return "the model has no layer with a weight matrix, so there is nothing to quantize"
    name, reason = next(iter(skipped.items()))
    return f"none of {len(skipped)} layers can be quantized; '{name}': {reason}"
