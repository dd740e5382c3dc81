"""Which layers get an adapter, and why the others don't."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from compresskit.errors import InputError, UsageError, listing
from compresskit.ops.globs import check_globs, matches
from compresskit.ops.lora.adapter import tied_with, turns
from compresskit.ops.packed.modules import PackedLayer, PackedLinear

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Refusal = Callable[[nn.Module], str | None]
"""Of a layer: the reason why a method has no adapter for it, or None."""


def find_targets(
    module: nn.Module, globs: Sequence[str], refuse: Refusal, *, rank: int | None = None, heads: bool = False
) -> tuple[list[str], dict[str, str]]:
    """The layers that are to be adapted.

    Without globs those are all that the method knows, but for the output layer of a language model and weights that
    layers share.

    Args:
        module: Any module.
        globs: Of layer names; each must match.
        refuse: What the method can't adapt.
        rank: Of the adapters; a matrix of a lower rank gains nothing by them.
        heads: Output layers of language models too.

    Returns:
        Names in the module's order, and the other layers with weights, each with the reason.

    Raises:
        UsageError: A glob matches nothing, or a layer that can't be adapted.
        InputError: There is nothing to adapt.
    """
    layers = {name: layer for name, layer in module.named_modules() if _weighs(layer)}
    check_globs(layers, globs, "`targets`")
    head = None if heads else _head(module)
    skipped: dict[str, str] = {}
    for name, layer in layers.items():
        reason = "the model is this one layer" if not name else refuse(layer) or _past_rank(layer, rank)
        if reason and name in globs:
            raise UsageError(f"'{name}' can't be adapted: {reason}", "leave it out of `targets`")
        reason = reason or (_not_named(name, globs) if globs else _left_alone(module, name, layer, head))
        if reason:
            skipped[name] = reason
    chosen = [name for name in layers if name not in skipped]
    if not chosen:
        raise _nothing(skipped, globs)
    return chosen, skipped


def _not_named(name: str, globs: Sequence[str]) -> str | None:
    return None if matches(name, globs) else "not among `targets`"


def _weighs(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    return isinstance(layer, PackedLayer) or (weight is not None and weight.dim() >= 2 and weight.is_floating_point())


def _head(module: nn.Module) -> nn.Module | None:
    """The layer that gives a language model's logits."""
    get: Any = getattr(module, "get_output_embeddings", None)
    try:
        return get() if callable(get) else None
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _left_alone(module: nn.Module, name: str, layer: nn.Module, head: nn.Module | None) -> str | None:
    if layer is head:
        return "the output layer of a language model: `targets` takes it in"
    shared = tied_with(module, name)
    return f"it shares its weight with {listing(shared)}: `targets` takes it in" if shared else None


def _past_rank(layer: nn.Module, rank: int | None) -> str | None:
    if rank is None or not isinstance(layer, (nn.Linear, PackedLinear, *_CONVOLUTIONS)):
        return None
    shape = layer.shape if isinstance(layer, PackedLayer) else layer.weight.shape
    low = min(shape[0], math.prod(shape[1:]))
    return f"rank {rank} is above the matrix, which has at most {low}" if rank > low else None


def _nothing(skipped: dict[str, str], globs: Sequence[str]) -> InputError | UsageError:
    if not skipped:
        return InputError("the model has no Linear or Conv layer, so there is nothing to adapt")
    name, reason = next(iter(skipped.items()))
    if globs:
        name, reason = next(((n, r) for n, r in skipped.items() if r != "not among `targets`"), (name, reason))
    found = f"none of {len(skipped)} layers can be adapted; '{name}': {reason}"
    return UsageError(found, "a lower `rank`, or other `targets`") if "rank" in reason or globs else InputError(found)


def linear_only(layer: nn.Module) -> str | None:
    """None for linear layers with floating-point weights."""
    if type(layer) is nn.Linear or turns(layer):
        return None
    if isinstance(layer, PackedLayer):
        return "its weight is quantized; `method` lora, rslora and loftq work beside codes"
    return f"{_kind(layer)}: this method adapts linear layers only"


def plain_linear(layer: nn.Module) -> str | None:
    """None for ``nn.Linear`` with floating-point weights."""
    return f"{_kind(layer)}: this method adapts Linear layers only" if turns(layer) else linear_only(layer)


def low_rank(layer: nn.Module) -> str | None:
    """None for what LoRA adapts: linear layers, packed ones too, and plain convolutions."""
    if isinstance(layer, PackedLinear):
        return None
    return floats_only(layer)


def floats_only(layer: nn.Module) -> str | None:
    """The same without packed layers."""
    if isinstance(layer, _CONVOLUTIONS) and type(layer) in _CONVOLUTIONS:
        if layer.groups > 1:
            return f"a convolution in {layer.groups} groups, whose adapter could not be merged"
        if any(step != 1 for step in layer.dilation) or layer.padding_mode != "zeros":
            return "a dilated convolution, or one that pads by other than zeros"
        return None
    if isinstance(layer, PackedLayer) or type(layer) is nn.Linear or turns(layer):
        return linear_only(layer)
    return f"{_kind(layer)}: adapters are for Linear and Conv layers"


def no_conv1d(layer: nn.Module) -> str | None:
    """What IA³ adapts: Linear, Conv2d and Conv3d."""
    return "Conv1d: this method has none" if type(layer) is nn.Conv1d else floats_only(layer)


def _kind(layer: nn.Module) -> str:
    return type(layer).__name__
