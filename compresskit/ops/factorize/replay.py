"""Factorized layers as JSON, and an architecture that is given them again; and the way back to dense layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from torch import nn

from compresskit.errors import InputError, UsageError
from compresskit.ops.factorize.chain import Factorized, Kind, blank
from compresskit.ops.factorize.plan import Choice, FactorizePlan
from compresskit.ops.packed.modules import PackedLayer, set_module
from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d


def facts_of(made: FactorizePlan, choice: Choice, turned: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is recorded of each layer that was replaced.

    Args:
        made: The plan.
        choice: What was done.
        turned: Layers that are a Conv1D of transformers in the original.
    """
    found: dict[str, dict[str, Any]] = {}
    for c in made.found.candidates:
        if option := choice.get(c.name):
            ranks = " and ".join(map(str, option.ranks))
            found[c.name] = {
                "kind": option.kind,
                "ranks": list(option.ranks),
                "shape": list(c.layer.weight.shape),
                **({"conv1d": True} if c.name in turned else {}),
                "share": round(option.params / c.params, 4),
                "energy": round(1 - made.share[c.name][option], 4),
                "about": f"{option.kind}, rank {ranks} of {'×'.join(map(str, c.layer.weight.shape))}",
            }
    return found


def replay(module: nn.Module, facts: Mapping[str, Any]) -> None:
    """Give a freshly built architecture the layers of the factorized model, in place; values are loaded afterwards.

    Args:
        module: The original architecture.
        facts: ``layers`` of a card; with ``merged`` these are layers that were multiplied out again.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    layers: Mapping[str, Any] = facts.get("layers", {})
    if facts.get("merged"):
        for name in layers:
            factors = _at(module, name)
            if not isinstance(factors, Factorized):
                raise InputError(f"layer '{name}' was merged, but the architecture has no factors there")
            set_module(module, name, factors.dense())
        linear_to_conv1d(module, [name for name, fact in layers.items() if fact.get("conv1d")])
        return
    conv1d_to_linear(module, [name for name, fact in layers.items() if fact.get("conv1d")])
    for name, fact in layers.items():
        layer = _at(module, name)
        shape, kind = tuple(fact["shape"]), fact["kind"]
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or tuple(layer.weight.shape) != shape:
            raise InputError(
                f"layer '{name}': a weight {shape} was factorized, the architecture has {type(layer).__name__}"
            )
        ranks = tuple(int(rank) for rank in fact["ranks"])
        if kind not in get_args(Kind):
            raise InputError(f"layer '{name}': there is no way '{kind}' to factorize", "the card is damaged")
        size = sum(p.numel() for p in Factorized(blank(layer)(bias=False, device="meta"), kind, ranks).parameters())
        if size >= layer.weight.numel():
            raise InputError(f"layer '{name}': factors of ranks {list(ranks)} take more than it", "the card is damaged")
        set_module(module, name, Factorized(layer, kind, ranks))


def _at(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise InputError(f"the architecture has no layer '{name}', which was factorized") from None


def merge(module: nn.Module, turned: Collection[str] = ()) -> dict[str, Factorized]:
    """Multiply out all factorized layers of a module, in place.

    Args:
        module: Holds the factors.
        turned: Layers that are a Conv1D of transformers in the original, and become one again.

    Returns:
        What was there, by name.

    Raises:
        UsageError: There are none, or their factors were quantized or pruned to other shapes.
    """
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, Factorized)}
    if not found:
        raise UsageError("no layer of this model is factorized: there is nothing to merge")
    for name, layer in found.items():
        if any(isinstance(part, PackedLayer) for part in layer):
            raise UsageError(f"the factors of '{name}' are quantized", "merge first, then quantize")
        if not layer.whole():
            raise UsageError(f"the factors of '{name}' were cut: their product is of another shape")
        set_module(module, name, layer.dense())
    linear_to_conv1d(module, [name for name in found if name in turned])
    return found
