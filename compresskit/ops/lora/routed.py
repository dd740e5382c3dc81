"""Several adapters beside a layer, of which each token of an input takes the one that suits it.

Without data the choice is that of Arrow, "Towards Modular LLMs by Building and Reusing a Library of LoRAs" (Ostapenko
et al., 2024, arXiv:2405.11157): an adapter's prototype is the direction of inputs that it changes most, the first right
singular vector of ``B A``, and what counts is how far an input lies along it. With data the gate is Fisher's linear
discriminant of the layer's inputs, in closed form, whose probabilities weigh the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError, listing
from compresskit.facts.lora import RoutedFacts
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.lora.adapter import Term, adaptable, check_shape, turns
from compresskit.ops.packed.modules import layer_of_card, set_module

_SHRINKAGE = 0.1
"""Of a covariance towards a multiple of the identity."""
Gates = dict[str, tuple[Tensor, Tensor | None]]
"""By layer the weight ``(adapters, in)`` of a gate, and its level ``(adapters,)``; None for Arrow's prototypes."""


class Router(nn.Module):
    """The adapters of one layer side by side, and their gate.

    Args:
        fact: Sizes.
        inputs: Of the layer.
        outputs: Of the layer.
    """

    level: Tensor | None
    mix: Tensor | None

    def __init__(self, fact: RoutedFacts, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ranks, self.hard = tuple(fact.ranks), fact.hard
        count = len(fact.ranks)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape), requires_grad=False)

        self.down, self.up = empty(sum(fact.ranks), inputs), empty(outputs, sum(fact.ranks))
        self.gate = empty(count, inputs)
        self.register_parameter("level", empty(count) if fact.trained else None)
        self.register_parameter("mix", empty(count, count) if fact.mixed else None)

    def weights(self, x: Tensor) -> Tensor:
        """How much of each adapter a token takes: ``(…, adapters)``, with the sum 1 where nothing is mixed."""
        scores = F.linear(x, self.gate, self.level)
        if self.level is None:
            scores = scores.abs()
        most = (scores >= scores.amax(-1, keepdim=True)).to(scores.dtype)
        shares: Tensor = most / most.sum(-1, keepdim=True) if self.hard else scores.softmax(-1)
        return shares if self.mix is None else shares @ self.mix

    def forward(self, x: Tensor) -> Tensor:
        """What the adapters add to the layer's output."""
        weights = self.weights(x)
        each = [weights[..., i : i + 1].expand(*weights.shape[:-1], rank) for i, rank in enumerate(self.ranks)]
        return F.linear(F.linear(x, self.down) * torch.cat(each, -1), self.up)


class Routed(nn.Module):
    """A layer's second class, put before its own: the same tensors under the same names, and a router."""

    router: Router

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, and what the adapters add to it."""
        out: Tensor = super().forward(x)
        added: Tensor = self.router(x)
        return out + added


@cache
def _routed_class(kind: Any) -> Any:
    return type(f"Routed{kind.__name__}", (Routed, kind), {})


def attach(module: nn.Module, layers: Mapping[str, RoutedFacts]) -> None:
    """Put routers without values beside layers, in place.

    Raises:
        InputError: A layer isn't there, or is no linear layer.
    """
    for name, fact in layers.items():
        layer = layer_of_card(module, name, "has adapters")
        inputs, outputs = _linear_sizes(name, layer)
        if sum(fact.ranks) > 64 * min(inputs, outputs):
            raise InputError(f"the adapters of '{name}' are far larger than the layer", "the card is damaged")
        own: Any = type(layer)
        kind = _routed_class(own)
        found: nn.Module = kind.__new__(kind)
        found.__dict__.update(layer.__dict__)
        found.__dict__["_modules"] = dict(layer._modules)
        found.router = Router(fact, inputs, outputs).train(layer.training)
        set_module(module, name, found)


def _linear_sizes(name: str, layer: nn.Module) -> tuple[int, int]:
    if type(layer) is not nn.Linear and not turns(layer):
        raise InputError(f"'{name}' is a {type(layer).__name__}, only linear layers can have routed adapters")
    outputs, inputs = layer.get_parameter("weight").shape
    return (outputs, inputs) if turns(layer) else (inputs, outputs)


@torch.no_grad()
def fill(module: nn.Module, terms: Sequence[Mapping[str, Term]], gates: Gates, mix: Tensor | None = None) -> None:
    """Give routers their values.

    Args:
        module: With routers, see :func:`attach`.
        terms: Of each adapter; a layer that it doesn't have gets nothing of it.
        gates: By layer.
        mix: ``(labels, adapters)``, how much of each adapter an input of a label takes; None is its own alone.
    """
    for name, (weight, level) in gates.items():
        layer = module.get_submodule(name)
        if not isinstance(layer, Routed):
            raise TypeError(f"{name} has no router")
        router, at = layer.router, 0
        for own, rank in zip(terms, router.ranks, strict=True):
            term = own.get(name)
            if term is not None and term.down is not None and term.up is not None:
                router.down[at : at + rank] = term.down
                router.up[:, at : at + rank] = term.up
            at += rank
        router.gate.copy_(weight)
        if router.level is not None and level is not None:
            router.level.copy_(level)
        if router.mix is not None and mix is not None:
            router.mix.copy_(mix)


def plan(
    module: nn.Module, terms: Sequence[Mapping[str, Term]], *, trained: bool, hard: bool, mixed: bool = False
) -> dict[str, RoutedFacts]:
    """What is recorded of each layer that one of the adapters is for.

    Raises:
        InputError: An adapter holds more than two factors, or is for a layer of another kind.
    """
    found = {}
    for name in dict.fromkeys(name for own in terms for name in own):
        layer = adaptable(module, name)
        _linear_sizes(name, layer)
        for own in terms:
            if name in own:
                check_shape(name, layer, own[name])
                if set(own[name].tensors()) != {"down", "up"} or own[name].serial:
                    raise InputError(f"the adapter of '{name}' is more than two factors", "only LoRA can be routed")
        ranks = [own[name].rank if name in own else 1 for own in terms]
        found[name] = RoutedFacts(ranks=ranks, trained=trained, hard=hard, mixed=mixed, about="routed adapters")
    return found


@torch.no_grad()
def prototypes(layers: Mapping[str, RoutedFacts], terms: Sequence[Mapping[str, Term]]) -> Gates:
    """Arrow's gates: for each adapter the unit vector of inputs that it changes most; zeros where it has no part."""
    found: Gates = {}
    for name in layers:
        rows = []
        width = next(term.down.shape[1] for own in terms if (term := own.get(name)) and term.down is not None)
        for own in terms:
            term = own.get(name)
            rows.append(torch.zeros(width) if term is None else _first_direction(term))
        found[name] = torch.stack(rows), None
    return found


def _first_direction(term: Term) -> Tensor:
    """The first right singular vector of ``up @ down``, without making the product."""
    if term.down is None or term.up is None:
        raise TypeError("there is no low-rank part")
    q, r = torch.linalg.qr(term.down.double().T)
    _, _, vh = torch.linalg.svd(term.up.double() @ r.T, full_matrices=False)
    found: Tensor = (q @ vh[0]).float()
    return found


@torch.no_grad()
def discriminants(
    module: nn.Module,
    layers: Iterable[str],
    batches: Iterable[tuple[Callable[[], Any], Tensor, Tensor | None]],
    count: int,
) -> Gates:
    """Gates from samples of which each adapter should take its own: linear discriminants of the layers' inputs.

    Args:
        module: The base, in eval mode.
        layers: By name.
        batches: What calls the module, the number of each sample's adapter, int64 ``(n,)``, and the mask of its tokens.
        count: Adapters.

    Raises:
        InputError: An adapter has no sample.
    """
    sums = {name: _Sums(count) for name in layers}
    seen = torch.zeros(count, dtype=torch.bool)
    for run, labels, mask in batches:
        seen[labels] = True
        with ExitStack() as stack:
            for name, own in sums.items():
                hook = partial(_add, own, labels, mask)
                stack.callback(module.get_submodule(name).register_forward_pre_hook(hook).remove)
            run()
    if not seen.all():
        missing = listing([str(i) for i in range(count) if not seen[i]])
        raise InputError(f"the data hold no sample with the label {missing}", "label k is for the adapter in place k")
    return {name: own.gate() for name, own in sums.items()}


def _add(own: _Sums, labels: Tensor, mask: Tensor | None, _layer: nn.Module, args: Any) -> None:
    own.add(next(tensors_in(args)), labels, mask)


class _Sums:
    """Counts, means and the covariance within classes of a layer's inputs, as sums."""

    def __init__(self, count: int) -> None:
        self.counts = torch.zeros(count, dtype=torch.float64)
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def add(self, x: Tensor, labels: Tensor, mask: Tensor | None) -> None:
        """Take the inputs of a batch: ``(n, …, in)``, padding left out."""
        each = labels.reshape(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1])
        if mask is not None and mask.shape == x.shape[:-1]:
            x, each = x[mask.ne(0)], each[mask.ne(0)]
        x, each = x.reshape(-1, x.shape[-1]).double(), each.reshape(-1)
        one = F.one_hot(each, len(self.counts)).double()
        self.counts += one.sum(0)
        first, second = one.T @ x, x.T @ x
        self.first = first if self.first is None else self.first + first
        self.second = second if self.second is None else self.second + second

    def gate(self) -> tuple[Tensor, Tensor]:
        """Weight and level, whose softmax is the probability of each class, all being as frequent."""
        if self.first is None or self.second is None:
            raise InputError("a layer with an adapter was not called", "give data that reach it")
        means = self.first / self.counts.unsqueeze(1)
        within = (self.second - (means * self.counts.unsqueeze(1)).T @ means) / self.counts.sum()
        size = within.diagonal().mean()
        within = (1 - _SHRINKAGE) * within + _SHRINKAGE * size * torch.eye(len(within), dtype=torch.float64)
        weight = torch.linalg.solve(within, means.T).T
        return weight.float(), (-0.5 * (weight * means).sum(1)).float()
