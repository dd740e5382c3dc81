"""Layers that follow each other without a bend, or stand beside each other, put together into one: exactly.

Parallel branches as in "RepVGG: Making VGG-style ConvNets Great Again" (Ding et al., 2021), and whatever else is
affine: batch normalization, factors a channel, identity branches, one layer behind another. The code of each module is
followed by ``torch.fx``, its submodules being single steps, from the inside to the outside. What is put together
depends on the architecture alone, never on values, so a freshly built model folds alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import FoldedFacts
from compresskit.ops.packed.modules import set_module
from compresskit.ops.prune.same import same
from compresskit.ops.substitute.affine import Affine
from compresskit.ops.substitute.forms import between, code_of, whole


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
    merged = {name: fact for name, fact in layers.items() if fact.holder is not None}
    found, _ = fold(module, among={str(fact.holder) for fact in merged.values()})
    if {one.full: list(one.gone) for one in found} != {name: fact.gone for name, fact in merged.items()}:
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


def _in_a_row(root: nn.Module, name: str) -> _Change:
    """Layers one behind the other: the first becomes all of them, the others pass on what they are given."""
    change, part = _Change(root), root.get_submodule(name)
    code = code_of(part)
    for node, form in code.foldable if code is not None else []:
        inner = between(node, form.source)
        layers = [n for n in code.graph.graph.nodes if n in inner] if code is not None else []
        names = [str(n.target) for n in layers]
        if (
            any(n.op != "call_module" for n in layers)
            or not isinstance(form.affine, Affine)
            or not stands_alone(root, part, names)
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
    code = code_of(part)
    if code is None or not name:
        return change
    graph, nodes = code.graph, list(code.graph.graph.nodes)
    for node, form in code.foldable:
        inner = between(node, form.source)
        layers = [str(n.target) for n in nodes if n in inner and n.op == "call_module"]
        carriers = [n for n in form.layers if whole(graph.get_submodule(n)) is not None]
        if not isinstance(form.affine, Affine) or not carriers or not stands_alone(root, part, layers):
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


def stands_alone(root: nn.Module, part: nn.Module, names: Sequence[str]) -> bool:
    """True where layers stand in one place of the model, are called once by the module's code, and share no weight."""
    places = Counter(id(m) for _, m in root.named_modules(remove_duplicate=False))
    weights = Counter(id(p) for _, p in root.named_parameters(remove_duplicate=False))
    layers = [part.get_submodule(n) for n in names]
    single = all(places[id(layer)] == 1 for layer in layers) and len(set(names)) == len(names)
    return single and all(weights[id(p)] == 1 for layer in layers for p in layer.parameters())
