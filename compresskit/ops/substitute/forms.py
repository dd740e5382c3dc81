"""What the values in a module's code are: affine functions of other values, put together from layers on the way."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.ops.shallow import shallow_graph
from compresskit.ops.substitute.affine import Affine, identity, of_layer, of_norm

_ADDS = (operator.add, operator.iadd, torch.add)
_TIMES = (operator.mul, operator.imul, torch.mul)
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_PASSING_NAMES = ("DropPath", "StochasticDepth")
_LEAVES = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


@dataclass
class Form:
    """What a value is, as an affine function of another one.

    Attributes:
        source: The value that it is a function of.
        affine: None is the value itself.
        layers: Targets of the layers that it was put together from.
        steps: How many operations became one.
    """

    source: fx.Node
    affine: Affine | None = None
    layers: tuple[str, ...] = ()
    steps: int = 0


@dataclass
class Code:
    """The code of a module as a graph, and what its values are."""

    graph: fx.GraphModule
    forms: dict[fx.Node, Form] = field(default_factory=dict)

    @property
    def foldable(self) -> list[tuple[fx.Node, Form]]:
        """Values that one layer could give, the last first."""
        found = [(node, self.forms[node]) for node in reversed(list(self.graph.graph.nodes)) if node in self.forms]
        return [(node, form) for node, form in found if form.steps > 1 and node.users and _pays(form, node)]


@torch.no_grad()
def code_of(part: nn.Module) -> Code | None:
    """None where there are no layers, or fx can't follow."""
    if isinstance(part, (*_LEAVES, fx.GraphModule)) or not any(True for _ in part.children()):
        return None
    try:
        code = Code(shallow_graph(part))
    except Exception:  # fx refuses code that depends on values
        return None
    for node in code.graph.graph.nodes:
        found = _form(node, code.graph, code.forms)
        if found is not None:
            code.forms[node] = found
    return code


def _pays(form: Form, node: fx.Node) -> bool:
    """True where one layer takes no more products than those that nobody else needs."""
    affine = form.affine
    return affine is not None and affine.products <= affine.cost and not _shared(node, form.source)


def _shared(node: fx.Node, source: fx.Node) -> bool:
    """True where a value between the source and the node is of use elsewhere."""
    inner = between(node, source)
    return any(user not in inner for part in inner if part is not node for user in part.users)


def between(node: fx.Node, source: fx.Node) -> set[fx.Node]:
    """The values from a source on, without it, up to a node."""
    found: set[fx.Node] = set()
    left = [node]
    while left:
        now = left.pop()
        if now is not source and now not in found and now.op != "get_attr":
            found.add(now)
            left += now.all_input_nodes
    return found


def _form(node: fx.Node, graph: fx.GraphModule, forms: dict[fx.Node, Form]) -> Form | None:
    """What a node computes; None for what isn't affine in one value, which is then a value of its own."""
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node):
        return _behind(node.args[0], str(node.target), graph.get_submodule(str(node.target)), forms)
    if node.op != "call_function" and node.op != "call_method":
        return None
    target: Any = getattr(torch, str(node.target), None) if node.op == "call_method" else node.target
    if len(node.args) != 2 or node.kwargs:
        return None
    one, two = node.args
    if target in _ADDS:
        if isinstance(one, fx.Node) and isinstance(two, fx.Node):
            return _sum(_known(one, forms), _known(two, forms))
        return _shifted(one, two, forms) or _shifted(two, one, forms)
    if target in _TIMES:
        return _product(one, two, graph, forms) or _product(two, one, graph, forms)
    return None


def _known(node: fx.Node, forms: dict[fx.Node, Form]) -> Form:
    return forms.get(node) or Form(node)


def _behind(given: fx.Node, name: str, layer: nn.Module, forms: dict[fx.Node, Form]) -> Form | None:
    """A layer behind a value: put together with it, or the start of something new."""
    form = _known(given, forms)
    if passes(layer):
        return Form(form.source, form.affine, form.layers, form.steps)
    norm = of_norm(layer)
    if norm is not None:
        if form.affine is None:
            # Of the value itself: its place in a sum says what kind of layer it becomes.
            return Form(given, _Scale(*norm), (name,), 1)  # type: ignore[arg-type]
        if isinstance(form.affine, _Scale):
            return None
        return Form(form.source, form.affine.scaled(*norm), (*form.layers, name), form.steps + 1)
    affine = whole(layer)
    if affine is None:
        return None
    if isinstance(form.affine, Affine):
        both = form.affine.then(affine)
        if both is not None and both.products <= both.cost:
            return Form(form.source, both, (*form.layers, name), form.steps + 1)
    return Form(given, affine, (name,), 1)


def whole(layer: nn.Module) -> Affine | None:
    """What a layer computes, or a row of them; None for what isn't affine."""
    if not isinstance(layer, (nn.Sequential, fx.GraphModule)):
        return of_layer(layer)
    steps = list(layer.children())
    if isinstance(layer, fx.GraphModule):
        inner = list(layer.graph.nodes)[1:-1]
        steps = [layer.get_submodule(str(n.target)) for n in inner if n.op == "call_module" and len(n.users) == 1]
        if len(steps) < len(inner) or any(n.args != (n.prev,) for n in inner):
            return None
    total: Affine | None = None
    for step in steps:
        if passes(step):
            continue
        norm = of_norm(step)
        if norm is not None and total is not None:
            total = total.scaled(*norm)
            continue
        part = whole(step)
        total = part if total is None or part is None else total.then(part)
        if total is None:
            return None
    return total


def passes(layer: nn.Module) -> bool:
    """True for what hands on its input in eval mode."""
    return isinstance(layer, _PASSING) or type(layer).__name__ in _PASSING_NAMES


@dataclass(frozen=True)
class _Scale:
    """A factor and a shift a channel of a value itself."""

    by: Tensor
    shift: Tensor
    products: float = 0.0
    cost: float = -1.0

    def as_affine(self, like: Affine) -> Affine:
        return identity(len(self.by), like).scaled(self.by, self.shift)


def _sum(one: Form, two: Form) -> Form | None:
    if one.source is not two.source:
        return None
    if not isinstance(one.affine, Affine):
        one, two = two, one
    if not isinstance(one.affine, Affine):
        return None
    other = two.affine
    if other is None:
        weight = one.affine.weight
        if weight.shape[0] != weight.shape[1] * one.affine.groups:
            return None
        other = identity(weight.shape[0], one.affine)
    elif isinstance(other, _Scale):
        other = other.as_affine(one.affine)
    total = one.affine.plus(other)
    if total is None:
        return None
    return Form(one.source, total, (*one.layers, *two.layers), one.steps + two.steps + 1)


def _shifted(value: Any, by: Any, forms: dict[fx.Node, Form]) -> Form | None:
    """A value and a number: the 0 that a sum of branches begins with, for one."""
    if not isinstance(value, fx.Node) or not isinstance(by, (int, float)):
        return None
    form = _known(value, forms)
    if not isinstance(form.affine, Affine):
        return None
    one = form.affine.weight.new_ones(len(form.affine.weight))
    affine = form.affine.scaled(one, by * one) if by else form.affine
    return Form(form.source, affine, form.layers, form.steps + 1)


def _product(value: Any, by: Any, graph: fx.GraphModule, forms: dict[fx.Node, Form]) -> Form | None:
    """A value times a number, or times a parameter of a number a channel."""
    if not isinstance(value, fx.Node):
        return None
    form = _known(value, forms)
    if not isinstance(form.affine, Affine):
        return None
    width = form.affine.weight.shape[0]
    like = form.affine.weight
    if isinstance(by, (int, float)):
        factor = like.new_full((width,), float(by))
    elif isinstance(by, fx.Node) and by.op == "get_attr":
        held = operator.attrgetter(str(by.target))(graph)
        axes = 3 if form.affine.pictures else 1
        shape = (width, 1, 1) if form.affine.pictures else (width,)
        if (
            not isinstance(held, Tensor)
            or held.numel() not in (1, width)
            or (held.numel() > 1 and tuple(held.shape)[-axes:] != shape)
        ):
            return None
        factor = held.detach().double().reshape(-1).expand(width)
    else:
        return None
    return Form(form.source, form.affine.scaled(factor), form.layers, form.steps + 1)
