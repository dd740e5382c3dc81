"""The widths of a cut model as JSON, and an architecture that is given these widths again; without torch-pruning."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from compresskit.errors import InputError
from compresskit.facts import to_json
from compresskit.facts.prune import CutFacts, StructuredFacts
from compresskit.ops.packed.modules import layer_of_card
from compresskit.ops.prune.cut import Places, depthwise, shrink
from compresskit.ops.prune.graph import axis_size
from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d, replay_shortcuts

_KINDS = (nn.Linear, _ConvNd, _BatchNorm, _InstanceNorm, nn.PReLU)
Widths = dict[str, tuple[int, int]]
"""Layer name to what it takes and gives; twice the same where it works on each channel alone."""


def widths(module: nn.Module) -> Widths:
    """The widths of all layers that can be cut."""
    return {name: _width(layer) for name, layer in module.named_modules() if isinstance(layer, _KINDS)}


def _width(layer: nn.Module) -> tuple[int, int]:
    alone = not isinstance(layer, (nn.Linear, _ConvNd)) or depthwise(layer)
    return (axis_size(layer, "out"),) * 2 if alone else (axis_size(layer, "in"), axis_size(layer, "out"))


def facts_of(module: nn.Module, before: Widths, conv1d: list[str]) -> dict[str, dict[str, Any]]:
    """What is recorded of each layer that was cut: its kind, and inputs and outputs before and after.

    Args:
        module: After the cut.
        before: Its widths before.
        conv1d: Layers that are a Conv1D of transformers in the original.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, now in widths(module).items():
        was = before.get(name, now)
        if was != now:
            kind = "Conv1D" if name in conv1d else type(module.get_submodule(name)).__name__
            fact = CutFacts(kind=kind, into=[was[0], now[0]], out=[was[1], now[1]])
            found[name] = to_json(fact) | {"about": _about(kind, was, now)}
    return found


def _about(kind: str, was: tuple[int, int], now: tuple[int, int]) -> str:
    if was[0] == was[1] and now[0] == now[1] and was != now:
        return f"{kind}, {was[1]} → {now[1]} channels"
    parts = [f"{a} → {b} {what}" for a, b, what in zip(was, now, ("inputs", "outputs"), strict=True) if a != b]
    return f"{kind}, {', '.join(parts)}"


def replay(module: nn.Module, facts: StructuredFacts) -> None:
    """Give a freshly built architecture the widths of the cut model, in place; its values are loaded afterwards.

    Args:
        module: The original architecture.
        facts: Of a card.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    replay_shortcuts(module, facts.rewritten)
    turned = conv1d_to_linear(module, [name for name, fact in facts.layers.items() if fact.kind == "Conv1D"])
    for name, fact in facts.layers.items():
        narrow(module, name, fact)
    linear_to_conv1d(module, turned)


def narrow(module: nn.Module, name: str, fact: CutFacts) -> None:
    """Give a layer of a freshly built architecture the widths that it was cut to, in place.

    Raises:
        InputError: The fact doesn't fit the layer.
    """
    layer = layer_of_card(module, name, "was pruned")
    was, now = zip(fact.into, fact.out, strict=True)
    if not isinstance(layer, _KINDS) or _width(layer) != was:
        found = f"{type(layer).__name__} {_width(layer)}" if isinstance(layer, _KINDS) else type(layer).__name__
        raise InputError(f"layer '{name}': the model that was pruned had {was} channels, the architecture has {found}")
    groups = layer.groups if isinstance(layer, _ConvNd) and not depthwise(layer) else 1
    if not all(0 < b <= a and b % groups == 0 for a, b in zip(was, now, strict=True)):
        raise InputError(f"layer '{name}': {was} channels can't become {now}", "the bundle's card is damaged")
    out = None if was[1] == now[1] else _first(was[1], now[1], groups)
    shrink(layer, Places(out, None if was[0] == now[0] else torch.arange(now[0] // groups)))


def _first(before: int, after: int, groups: int) -> torch.Tensor:
    """The first channels of each group."""
    local = torch.arange(after // groups)
    return torch.cat([local + before // groups * g for g in range(groups)])
