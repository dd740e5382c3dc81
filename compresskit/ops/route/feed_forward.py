"""A dense feed-forward layer as shared hidden units and routed experts: each token goes through some of the experts.

After "CMoE: Converting Mixture-of-Experts from Dense to Accelerate LLM Inference" (Pei et al., 2025) and "MoEfication"
(Zhang et al., 2022). What an expert gives on the average where it isn't chosen is added to the bias instead, so its
absence costs less; with all experts chosen the layer is the dense one. Left out: gates that scale an expert's output.

Tokens are gathered for each expert, whose weights are read once. Weights gathered for each token are no faster for one
token, and many times slower for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.route import SplitFacts
from compresskit.ops.calibration.trace import OUTPUT, Trace
from compresskit.ops.lora.adapter import turns
from compresskit.ops.packed.modules import layer_of_card, set_module

GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""Parts of a gated feed-forward module, as in Llama: ``down(act(gate(x)) * up(x))``."""


@dataclass(frozen=True)
class Site:
    """A dense feed-forward layer by the names of its parts.

    Attributes:
        name: Of what experts take the place of: ``down``, or the module that holds all parts where there is a gate.
        up: What makes the hidden units, a linear layer.
        activation: A module without parameters.
        down: The linear layer that reads them.
        gate: A second linear layer that makes them; then the activation is applied to it alone.
    """

    name: str
    up: str
    activation: str
    down: str
    gate: str | None = None

    def hidden(self, module: nn.Module, x: Tensor) -> Tensor:
        """The hidden units of inputs ``(tokens, inputs)``: ``(tokens, hidden)``."""
        up, act = module.get_submodule(self.up), module.get_submodule(self.activation)
        made: Tensor = act(up(x)) if self.gate is None else act(module.get_submodule(self.gate)(x)) * up(x)
        return made


def sites(module: nn.Module, found: Trace) -> list[Site]:
    """The dense feed-forward layers of a module: gated ones first, then in its order; no two have a part in common.

    Args:
        module: In eval mode.
        found: A trace of it.
    """
    once = {name for name in found.once() if name}
    kept: list[Site] = []
    for name, layer in module.named_modules():
        if name and all(hasattr(layer, part) for part in GATED):
            gate, up, down, act = (f"{name}.{part}" for part in GATED)
            if {gate, up, down, act} <= once and all(linear(module.get_submodule(n)) for n in (gate, up, down)):
                kept.append(Site(name, up, act, down, gate))
    inside = {part for site in kept for part in (site.up, site.gate)}
    chains = (_chain(module, found, n) for n in once - inside if linear(module.get_submodule(n)))
    places = {name: place for place, (name, _) in enumerate(module.named_modules())}
    for site in sorted((site for site in chains if site is not None), key=lambda site: places[site.name]):
        if all(site.up != other.down for other in kept):
            kept.append(site)
    return kept


def linear(layer: nn.Module) -> bool:
    """Whether a layer is a plain linear one."""
    return type(layer) is nn.Linear or turns(layer)


def _chain(module: nn.Module, found: Trace, up: str) -> Site | None:
    """The linear layer behind another one, a module without parameters between them that is their activation."""
    name, activation, once = up, "", found.once()
    while True:
        readers = found.consumers(name)
        # dropout that is off gives the very tensor that it was given: who reads that reads both
        solid = {reader for reader in readers if reader == OUTPUT or not _passes(module.get_submodule(reader))}
        readers = solid or readers
        following = next(iter(readers)) if len(readers) == 1 else OUTPUT
        if following not in once:
            return None
        layer = module.get_submodule(following)
        if linear(layer):
            return Site(following, up, activation, following) if activation else None
        if any(True for _ in layer.children()) or any(True for _ in layer.parameters()):
            return None
        if not _passes(layer):
            if activation:
                return None
            activation = following
        name = following


def _passes(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Dropout, nn.Identity))


class RoutedFeedForward(nn.Module):
    """Shared hidden units, and experts of which each token takes those with the largest scores of a linear router.

    The layers in it are plain, so whatever comes later treats them as any other.

    Args:
        fact: Sizes.
        like: The layer that made the hidden units: gives inputs, dtype and device.
        outputs: Of the layer.
        activation: Between the two.
        gated: There is a gate.

    Attributes:
        top: Experts of a token.
    """

    def __init__(self, fact: SplitFacts, like: nn.Module, outputs: int, activation: nn.Module, *, gated: bool) -> None:
        super().__init__()
        weight = like.get_parameter("weight")
        inputs = weight.shape[0] if turns(like) else weight.shape[1]
        where: Any = {"dtype": weight.dtype, "device": weight.device}
        self.top = fact.top
        self.router = nn.Linear(inputs, fact.experts, **where)
        self.shared = _Part(inputs, fact.shared, outputs, activation, gated, where)
        self.experts = nn.ModuleList(
            _Part(inputs, fact.size, outputs, activation, gated, where) for _ in range(fact.experts)
        )
        self.train(like.training)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, inputs)`` to ``(…, outputs)``."""
        tokens = x.reshape(-1, x.shape[-1])
        chosen = self.router(tokens).topk(self.top, dim=-1).indices
        rows, outs = list[Tensor](), list[Tensor]()
        for number, expert in enumerate(self.experts):
            sent = (chosen == number).nonzero()[:, 0]
            rows.append(sent)
            outs.append(expert(tokens[sent]))
        out: Tensor = self.shared(tokens).index_put((torch.cat(rows),), torch.cat(outs), accumulate=True)
        return out.reshape(*x.shape[:-1], out.shape[-1])


class _Part(nn.Module):
    """Some of the hidden units."""

    def __init__(self, inputs: int, hidden: int, outputs: int, activation: nn.Module, gated: bool, where: Any) -> None:
        super().__init__()
        self.up = nn.Linear(inputs, hidden, **where)
        self.gate = nn.Linear(inputs, hidden, **where) if gated else None
        self.down = nn.Linear(hidden, outputs, **where)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        made = self.up(x)
        made = self.activation(made) if self.gate is None else self.activation(self.gate(x)) * made
        out: Tensor = self.down(made)
        return out


@dataclass(frozen=True)
class Split:
    """Which hidden unit belongs where, and the router.

    Attributes:
        shared: int64, the units that all tokens go through.
        experts: int64 ``(experts, size)``.
        weight: Of the router, ``(experts, inputs)``.
        bias: Of the router, ``(experts,)``.
        absent: ``(experts, outputs)``: what an expert gives on the average where it isn't chosen.
    """

    shared: Tensor
    experts: Tensor
    weight: Tensor
    bias: Tensor
    absent: Tensor


def empty(module: nn.Module, name: str, fact: SplitFacts) -> RoutedFeedForward:
    """The experts of one layer, without values.

    Args:
        module: Holds the dense layer.
        name: Of what they take the place of.
        fact: Its parts and sizes.

    Raises:
        InputError: The facts don't fit the layer.
    """
    names = (fact.up, fact.down, *([fact.gate] if fact.gate else []))
    up, down, *_ = layers = [layer_of_card(module, part, "has experts") for part in names]
    activation = layer_of_card(module, fact.activation, "has experts")
    layer_of_card(module, name, "has experts")
    if not all(map(linear, layers)):
        raise InputError(f"'{name}' is no feed-forward layer of linear layers", "check `arch` and `arch_args`")
    hidden, outputs = (len(rows_of(layer)) for layer in (up, down))
    if fact.shared + fact.experts * fact.size != hidden or fact.top > fact.experts:
        raise InputError(f"the experts of '{name}' don't add up to its {hidden} hidden units", "the card is damaged")
    return RoutedFeedForward(fact, up, outputs, activation, gated=bool(fact.gate))


@torch.no_grad()
def filled(module: nn.Module, name: str, fact: SplitFacts, split: Split) -> RoutedFeedForward:
    """The experts of one layer with the weights of the dense one."""
    made = empty(module, name, fact)
    up, down = module.get_submodule(fact.up), module.get_submodule(fact.down)
    gate = module.get_submodule(fact.gate) if fact.gate else None
    level, absent = _bias(down), split.absent
    base = absent.sum(0) if level is None else level + absent.sum(0)
    made.router.weight.copy_(split.weight)
    made.router.bias.copy_(split.bias)
    parts: list[Any] = [*made.experts, made.shared]
    for part, own, bias in zip(parts, [*split.experts, split.shared], [*-absent, base], strict=True):
        for new, old in ((part.up, up), (part.gate, gate)):
            if old is not None:
                new.weight.copy_(rows_of(old)[own])
                new.bias.copy_(torch.zeros(len(own)) if _bias(old) is None else _bias(old)[own])  # type: ignore[index]
        part.down.weight.copy_(rows_of(down)[:, own])
        part.down.bias.copy_(bias)
    return made


def place(module: nn.Module, name: str, fact: SplitFacts, made: RoutedFeedForward) -> None:
    """Put the experts of one layer into a module, in place; what led to them hands on what it is given."""
    set_module(module, name, made)
    if not fact.gate:
        set_module(module, fact.up, nn.Identity())
        set_module(module, fact.activation, nn.Identity())


def replay(module: nn.Module, layers: Sequence[tuple[str, SplitFacts]]) -> None:
    """Put experts without values into a freshly built module.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    for name, fact in layers:
        place(module, name, fact, empty(module, name, fact))


def rows_of(layer: nn.Module) -> Tensor:
    """A linear layer's weight ``(outputs, inputs)``."""
    weight = layer.get_parameter("weight")
    return weight.mT if turns(layer) else weight


def _bias(layer: nn.Module) -> Tensor | None:
    bias: Tensor | None = getattr(layer, "bias", None)
    return bias
