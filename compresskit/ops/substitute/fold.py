"""Layers that follow each other without a bend, or stand beside each other, put together into one: exactly.

Parallel branches as in "RepVGG: Making VGG-style ConvNets Great Again" (Ding et al., 2021), and whatever else is
affine: batch normalization, factors a channel, identity branches, one layer behind another. The code of each module is
followed by ``torch.fx``, its submodules being single steps, from the inside to the outside. What is put together
depends on the architecture alone, never on values, so a freshly built model folds alike.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import FoldedFacts
from compresskit.ops.packed.modules import set_module
from compresskit.ops.prune.same import same
from compresskit.ops.substitute.affine import Affine, identity, of_layer, of_norm

_ADDS = (operator.add, operator.iadd, torch.add)
_TIMES = (operator.mul, operator.imul, torch.mul)
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_PASSING_NAMES = ("DropPath", "StochasticDepth")
_LEAVES = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class Folded:
    """One layer in the place of several.

    Attributes:
        holder: Name of the module whose code had them.
        name: Of the new layer, within the holder.
        gone: The layers that are gone, within the holder.
    """

    holder: str
    name: str
    gone: tuple[str, ...]

    @property
    def full(self) -> str:
        """Name of the new layer in the model."""
        return f"{self.holder}.{self.name}".removeprefix(".")


class _Shallow(fx.Tracer):
    """Follows the code of one module; its submodules are single steps."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


@dataclass
class _Form:
    """What a value is, as an affine function of another one.

    Attributes:
        source: The value that it is a function of.
        affine: None is the value itself.
        layers: Targets of the layers that it was put together from.
    """

    source: fx.Node
    affine: Affine | None = None
    layers: tuple[str, ...] = ()
    steps: int = 0


def fold(
    module: nn.Module,
    skip: Callable[[str], str] = lambda _name: "",
    run: Callable[[nn.Module], Any] | None = None,
    among: Collection[str] | None = None,
) -> tuple[list[Folded], dict[str, str]]:
    """Put layers together, in place.

    Args:
        module: In eval mode.
        skip: Why the code of a module is to stay as it is; empty where it needn't.
        run: Calls the module with inputs: what would give another output than before stays as it was.
        among: Names of the modules whose code may change; None: all.

    Returns:
        What was put together; and the modules whose layers could be, and are left alone, with the reason.
    """
    done: list[Folded] = []
    left: dict[str, str] = {}
    wanted = run(module) if run is not None else None
    for name in [n for n, _ in module.named_modules()][::-1]:
        if among is not None and name not in among:
            continue
        changes = [change for way in (_in_a_row, _side_by_side) if (change := way(module, name)).folded]
        why = skip(name) if changes else ""
        if changes and not why and run is not None and not _gives(module, run, wanted):
            why = "its output would not be the same"
        if why:
            for change in reversed(changes):
                change.undo()
            left[name] = why
        else:
            done += [one for change in changes for one in change.folded]
    return done, left


def replay(module: nn.Module, layers: Mapping[str, FoldedFacts]) -> None:
    """Put the same layers of a freshly built architecture together, in place; values are loaded afterwards.

    Raises:
        InputError: This architecture folds in another way.
    """
    found, _ = fold(module, among={fact.holder for fact in layers.values()})
    if {one.full: list(one.gone) for one in found} != {name: fact.gone for name, fact in layers.items()}:
        raise InputError("the architecture has other layers to put together than the card says", "check `arch`")


@torch.no_grad()
def _gives(module: nn.Module, run: Callable[[nn.Module], Any], wanted: Any) -> bool:
    try:
        return same(wanted, run(module))
    except Exception:  # the user's forward, with a module that lacks something it relies on
        return False


@dataclass
class _Change:
    """What was changed in a module, and how it is undone.

    Attributes:
        root: The module.
        before: What stood where.
        folded: The new layers.
    """

    root: nn.Module
    before: dict[str, nn.Module] = field(default_factory=dict)
    folded: list[Folded] = field(default_factory=list)

    def put(self, name: str, new: nn.Module) -> None:
        """Another module in a place."""
        self.before.setdefault(name, self.root.get_submodule(name))
        set_module(self.root, name, new)

    def undo(self) -> None:
        """All as before."""
        for name, old in self.before.items():
            set_module(self.root, name, old)


@dataclass
class _Code:
    """The code of a module as a graph, and what its values are."""

    graph: fx.GraphModule
    forms: dict[fx.Node, _Form] = field(default_factory=dict)

    @property
    def foldable(self) -> list[tuple[fx.Node, _Form]]:
        """Values that one layer could give, the last first."""
        found = [(node, self.forms[node]) for node in reversed(list(self.graph.graph.nodes)) if node in self.forms]
        return [(node, form) for node, form in found if form.steps > 1 and node.users and _pays(form, node)]


@torch.no_grad()
def _code(part: nn.Module) -> _Code | None:
    """None where there are no layers, or fx can't follow."""
    if isinstance(part, (*_LEAVES, fx.GraphModule)) or not any(True for _ in part.children()):
        return None
    try:
        code = _Code(fx.GraphModule(part, _Shallow().trace(part), type(part).__name__))
    except Exception:  # fx refuses code that depends on values
        return None
    for node in code.graph.graph.nodes:
        found = _form(node, code.graph, code.forms)
        if found is not None:
            code.forms[node] = found
    return code


def _in_a_row(root: nn.Module, name: str) -> _Change:
    """Layers one behind the other: the first becomes all of them, the others pass on what they are given."""
    change, part = _Change(root), root.get_submodule(name)
    code = _code(part)
    for node, form in code.foldable if code is not None else []:
        inner = _between(node, form.source)
        layers = [n for n in code.graph.graph.nodes if n in inner] if code is not None else []
        names = [str(n.target) for n in layers]
        if (
            any(n.op != "call_module" for n in layers)
            or not isinstance(form.affine, Affine)
            or not _own(root, part, names)
        ):
            continue
        first = next(n for n in names if n in form.layers)
        full = f"{name}.".removeprefix(".")
        new = form.affine.layer(_like(part.get_submodule(first)))
        if change.folded and any(f"{full}{n}" in change.before for n in names):
            continue  # within a longer row
        for other in names:
            if other in form.layers:
                change.put(f"{full}{other}", new if other == first else nn.Identity())
        change.folded.append(Folded(name, first, tuple(n for n in names if n in form.layers and n != first)))
    return change


def _side_by_side(root: nn.Module, name: str) -> _Change:
    """Branches that are added, factors and the like: the module's code changes too."""
    change, part = _Change(root), root.get_submodule(name)
    code = _code(part)
    if code is None or not name:
        return change
    graph, nodes = code.graph, list(code.graph.graph.nodes)
    for node, form in code.foldable:
        inner = _between(node, form.source)
        layers = [str(n.target) for n in nodes if n in inner and n.op == "call_module"]
        carriers = [n for n in form.layers if _whole(graph.get_submodule(n)) is not None]
        if not isinstance(form.affine, Affine) or not carriers or not _own(root, part, layers):
            continue
        if any(n.graph is not graph.graph or n not in graph.graph.nodes for n in inner):
            continue  # gone with a longer one
        new = form.affine.layer(_like(graph.get_submodule(carriers[0])))
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(carriers[0], (form.source,))
        node.replace_all_uses_with(call)
        for old in sorted(inner, key=nodes.index, reverse=True):
            graph.graph.erase_node(old)
        parent, _, leaf = carriers[0].rpartition(".")
        setattr(graph.get_submodule(parent), leaf, new)
        gone = tuple(n for n in dict.fromkeys(form.layers) if n != carriers[0])
        change.folded.append(Folded(name, carriers[0], gone))
    if change.folded:
        graph.graph.lint()
        graph.delete_all_unused_submodules()
        graph.recompile()
        graph.train(part.training)
        change.put(name, graph)
    return change


def _like(layer: nn.Module) -> Tensor:
    return next(p for p in layer.parameters() if p.is_floating_point())


def _own(root: nn.Module, part: nn.Module, names: Sequence[str]) -> bool:
    """True where layers stand in one place of the model, are called once by the module's code, and share no weight."""
    places = Counter(id(m) for _, m in root.named_modules(remove_duplicate=False))
    weights = Counter(id(p) for _, p in root.named_parameters(remove_duplicate=False))
    layers = [part.get_submodule(n) for n in names]
    single = all(places[id(layer)] == 1 for layer in layers) and len(set(names)) == len(names)
    return single and all(weights[id(p)] == 1 for layer in layers for p in layer.parameters())


def _pays(form: _Form, node: fx.Node) -> bool:
    """True where one layer takes no more products than those that nobody else needs."""
    affine = form.affine
    return affine is not None and affine.products <= affine.cost and not _shared(node, form.source)


def _shared(node: fx.Node, source: fx.Node) -> bool:
    """True where a value between the source and the node is of use elsewhere."""
    inner = _between(node, source)
    return any(user not in inner for part in inner if part is not node for user in part.users)


def _between(node: fx.Node, source: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    left = [node]
    while left:
        now = left.pop()
        if now is not source and now not in found and now.op != "get_attr":
            found.add(now)
            left += now.all_input_nodes
    return found


def _form(node: fx.Node, graph: fx.GraphModule, forms: dict[fx.Node, _Form]) -> _Form | None:
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


def _known(node: fx.Node, forms: dict[fx.Node, _Form]) -> _Form:
    return forms.get(node) or _Form(node)


def _behind(given: fx.Node, name: str, layer: nn.Module, forms: dict[fx.Node, _Form]) -> _Form | None:
    """A layer behind a value: put together with it, or the start of something new."""
    form = _known(given, forms)
    if _passes(layer):
        return _Form(form.source, form.affine, form.layers, form.steps)
    norm = of_norm(layer)
    if norm is not None:
        if form.affine is None:
            # Of the value itself: its place in a sum says what kind of layer it becomes.
            return _Form(given, _Scale(*norm), (name,), 1)  # type: ignore[arg-type]
        if isinstance(form.affine, _Scale):
            return None
        return _Form(form.source, form.affine.scaled(*norm), (*form.layers, name), form.steps + 1)
    affine = _whole(layer)
    if affine is None:
        return None
    if isinstance(form.affine, Affine):
        both = form.affine.then(affine)
        if both is not None and both.products <= both.cost:
            return _Form(form.source, both, (*form.layers, name), form.steps + 1)
    return _Form(given, affine, (name,), 1)


def _whole(layer: nn.Module) -> Affine | None:
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
        if _passes(step):
            continue
        norm = of_norm(step)
        if norm is not None and total is not None:
            total = total.scaled(*norm)
            continue
        part = _whole(step)
        total = part if total is None or part is None else total.then(part)
        if total is None:
            return None
    return total


def _passes(layer: nn.Module) -> bool:
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


def _sum(one: _Form, two: _Form) -> _Form | None:
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
    return _Form(one.source, total, (*one.layers, *two.layers), one.steps + two.steps + 1)


def _shifted(value: Any, by: Any, forms: dict[fx.Node, _Form]) -> _Form | None:
    """A value and a number: the 0 that a sum of branches begins with, for one."""
    if not isinstance(value, fx.Node) or not isinstance(by, (int, float)):
        return None
    form = _known(value, forms)
    if not isinstance(form.affine, Affine):
        return None
    one = form.affine.weight.new_ones(len(form.affine.weight))
    affine = form.affine.scaled(one, by * one) if by else form.affine
    return _Form(form.source, affine, form.layers, form.steps + 1)


def _product(value: Any, by: Any, graph: fx.GraphModule, forms: dict[fx.Node, _Form]) -> _Form | None:
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
    return _Form(form.source, form.affine.scaled(factor), form.layers, form.steps + 1)
