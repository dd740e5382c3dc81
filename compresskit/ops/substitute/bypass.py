"""Two layers with a ReLU between them that does nothing for some units: for those, one layer beside them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.facts.substitute import BypassFacts
from compresskit.ops.packed.modules import layer_of_card, set_module
from compresskit.ops.prune.cut import Places, shrink
from compresskit.ops.shallow import shallow_graph
from compresskit.ops.substitute.affine import Affine, of_layer
from compresskit.ops.substitute.fold import stands_alone
from compresskit.ops.substitute.forms import passes

_LIMITS = {nn.ReLU: math.inf, nn.ReLU6: 6.0}
"""Above 0 and below this such an activation gives what it is given."""
_FUNCTIONS = (F.relu, F.relu6, torch.relu, "relu", "relu_")


@dataclass(frozen=True)
class Pair:
    """Two layers with a ReLU between them.

    Attributes:
        first: Name of the layer before it.
        second: Of the layer behind it.
        between: Names of the ReLU, and of what else stands between them and passes on what it is given.
        limit: Below this the ReLU gives what it is given.
    """

    first: str
    second: str
    between: tuple[str, ...]
    limit: float


class Bypassed(nn.Module):
    """``second(relu(first(x))) + bypass(x)``.

    Args:
        first: Of the units whose ReLU bends.
        relu: Of them.
        second: Takes them.
        bypass: What the other units do.
    """

    def __init__(self, first: nn.Module, relu: nn.Module, second: nn.Module, bypass: nn.Module) -> None:
        super().__init__()
        self.first, self.relu, self.second, self.bypass = first, relu, second, bypass

    def forward(self, x: Tensor) -> Tensor:
        """The output of the second layer."""
        out: Tensor = self.second(self.relu(self.first(x))) + self.bypass(x)
        return out


def pairs(root: nn.Module) -> tuple[list[Pair], dict[str, str]]:
    """The pairs of a model's layers, and the layers behind a ReLU that can't be in one with the reason."""
    found: list[Pair] = []
    left: dict[str, str] = {}
    for name, part in root.named_modules():
        graph = _code(part)
        if graph is None:
            continue
        calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
        prefix = f"{name}.".removeprefix(".")
        for node in graph.graph.nodes:
            row = _row(node, graph)
            if isinstance(row, str):
                left[f"{prefix}{node.target}"] = row
            elif row is not None:
                one, *between, two = row
                limit = next(_LIMITS[type(m)] for m in map(graph.get_submodule, between) if type(m) in _LIMITS)
                if any(calls[n] > 1 for n in row) or not stands_alone(root, part, row):
                    left[f"{prefix}{two}"] = "it, its ReLU or the layer before is of use elsewhere too"
                else:
                    names = tuple(f"{prefix}{n}" for n in between)
                    found.append(Pair(f"{prefix}{one}", f"{prefix}{two}", names, limit))
    return found, left


def _code(part: nn.Module) -> fx.GraphModule | None:
    if not any(True for _ in part.children()):
        return None
    try:
        return shallow_graph(part)
    except Exception:  # fx refuses code that depends on values
        return None


def _row(node: fx.Node, graph: fx.GraphModule) -> list[str] | str | None:
    """The modules from one layer through a ReLU to another one, which the node calls; or why it is no pair."""
    if node.op != "call_module" or of_layer(graph.get_submodule(str(node.target))) is None:
        return None
    row, bent, at = [str(node.target)], False, node
    while len(at.args) == 1 and isinstance(at.args[0], fx.Node) and len(at.args[0].users) == 1:
        at = at.args[0]
        if at.op != "call_module":
            return "its ReLU is a function in the model's code, not a module" if at.target in _FUNCTIONS else None
        layer = graph.get_submodule(str(at.target))
        row.insert(0, str(at.target))
        if type(layer) in _LIMITS and not bent:
            bent = True
        elif not passes(layer):
            return row if bent and of_layer(layer) is not None else None
    return None


@torch.no_grad()
def bypass(root: nn.Module, pair: Pair, always: list[int]) -> BypassFacts | str:
    """Lead units past their ReLU, in place.

    Args:
        root: Holds both layers.
        pair: The layers.
        always: The units, ascending.

    Returns:
        What was done, or why it wasn't.
    """
    first, second = root.get_submodule(pair.first), root.get_submodule(pair.second)
    both = _both(first, second, always)
    if isinstance(both, str):
        return both
    width = len(first.get_parameter("weight"))
    if both.products >= both.cost:
        return (
            f"{len(always)} of {width} units are always on: one layer for them would take {both.products:.0f} products "
            f"in place of {both.cost:.0f}"
        )
    fact = BypassFacts(first=pair.first, between=list(pair.between), kept=width - len(always))
    _put(root, pair.second, fact, both, always)
    return fact


def _both(first: nn.Module, second: nn.Module, always: list[int]) -> Affine | str:
    """The one layer for some units; with all of them it has the second layer's bias too."""
    one, two = of_layer(first), of_layer(second)
    if one is None or two is None or one.groups > 1 or two.groups > 1:
        return "one of both is no plain layer of all channels"
    share = len(always) / len(one.weight)
    bias = None if one.bias is None else one.bias[always]
    one = replace(one, weight=one.weight[always], bias=bias, cost=one.cost * share)
    level = two.bias if share == 1 else None
    both = one.then(replace(two, weight=two.weight[:, always], bias=level, cost=two.cost * share))
    return both or "padding or two windows: both layers aren't one layer"


def _put(root: nn.Module, name: str, fact: BypassFacts, both: Affine, always: list[int]) -> None:
    first, second = root.get_submodule(fact.first), root.get_submodule(name)
    new = both.layer(second.get_parameter("weight"))
    if fact.kept:
        relu = next(m for m in map(root.get_submodule, fact.between) if type(m) in _LIMITS)
        gone = set(always)
        stay = torch.tensor([n for n in range(fact.kept + len(always)) if n not in gone])
        shrink(first, Places(out=stay))
        shrink(second, Places(into=stay))
        new = Bypassed(first, relu, second, new)
    new.train(second.training)
    set_module(root, name, new)
    for other in (fact.first, *fact.between):
        set_module(root, other, nn.Identity())


def replay(root: nn.Module, name: str, fact: BypassFacts) -> None:
    """Put the same bypass into a freshly built architecture, in place; values are loaded afterwards.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    first, second = (layer_of_card(root, n, "was bypassed") for n in (fact.first, name))
    between = [layer_of_card(root, n, "was bypassed") for n in fact.between]
    width = len(first.get_parameter("weight")) if of_layer(first) is not None else 0
    if not fact.kept < width or not any(type(m) in _LIMITS for m in between):
        raise InputError(f"layer '{name}' can't have been bypassed: it has other units", "check `arch` and `arch_args`")
    always = list(range(width - fact.kept))
    both = _both(first, second, always)
    if isinstance(both, str):
        raise InputError(f"layer '{name}' can't have been bypassed: {both}", "check `arch` and `arch_args`")
    _put(root, name, fact, both, always)
