"""Factorized layers as JSON, and an architecture that is given them again; and the way back to dense layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from compresskit.errors import InputError, UsageError
from compresskit.facts import to_json
from compresskit.facts.factorize import FactorFacts, FactorizeFacts
from compresskit.ops.factorize.chain import Factorized, blank
from compresskit.ops.factorize.plan import Choice, FactorizePlan
from compresskit.ops.packed.modules import PackedLayer, layer_of_card, set_module
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
            ranks, shape = " and ".join(map(str, option.ranks)), list(c.layer.weight.shape)
            fact = FactorFacts(
                kind=option.kind,
                ranks=list(option.ranks),
                shape=shape,
                conv1d=c.name in turned,
                share=round(option.params / c.params, 4),
                energy=round(1 - made.share[c.name][option], 4),
            )
            about = f"{option.kind}, rank {ranks} of {'×'.join(map(str, shape))}"
            found[c.name] = to_json(fact) | {"about": about}
    return found


def replay(module: nn.Module, facts: FactorizeFacts) -> None:
    """Give a freshly built architecture the layers of the factorized model, in place; values are loaded afterwards.

    Args:
        module: The original architecture.
        facts: Of a card; where they are ``merged``, layers become dense again.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    turned = [name for name, fact in facts.layers.items() if fact.conv1d]
    if not facts.merged:
        conv1d_to_linear(module, turned)
    for name, fact in facts.layers.items():
        layer = layer_of_card(module, name, "was factorized")
        set_module(module, name, _factors(name, layer, fact) if isinstance(fact, FactorFacts) else _dense(name, layer))
    if facts.merged:
        linear_to_conv1d(module, turned)


def _dense(name: str, layer: nn.Module) -> nn.Module:
    if not isinstance(layer, Factorized):
        raise InputError(f"layer '{name}' was merged, but the architecture has no factors there")
    return layer.dense()


def _factors(name: str, layer: nn.Module, fact: FactorFacts) -> Factorized:
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or list(layer.weight.shape) != fact.shape:
        raise InputError(
            f"layer '{name}': a weight {tuple(fact.shape)} was factorized, the architecture has {type(layer).__name__}"
        )
    empty = Factorized(blank(layer)(bias=False, device="meta"), fact.kind, fact.ranks)
    if sum(p.numel() for p in empty.parameters()) >= layer.weight.numel():
        raise InputError(f"layer '{name}': factors of ranks {fact.ranks} take more than it", "the card is damaged")
    return Factorized(layer, fact.kind, fact.ranks)


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
