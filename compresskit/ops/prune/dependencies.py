"""Groups of channels, found by torch-pruning: "DepGraph: Towards Any Structural Pruning" (Fang et al., 2023).

What it finds is taken over as plain data, and believed only after a cut has been tried: see
:mod:`compresskit.ops.prune.trial`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from compresskit.errors import InputError
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.prune.counted_graph import EFFORT, Effort, OutOfSteps, counted_graph
from compresskit.ops.prune.graph import Axis, Group, Member, axis_size
from compresskit.ops.prune.limit import OutOfTime, time_limit

_OUTPUT = "it produces the model's output"
_MIXED = "its channels are mixed by the normalization '{}'"
_HEADS = "its channels belong to heads of attention: `method` width prunes heads"
_LATE = "torch-pruning did not determine which channels are coupled"
_ELSEWHERE = "prune whole blocks (`method` depth), or single weights (`method` magnitude)"


def find_groups(
    module: nn.Module, run: Callable[[nn.Module], Any], *, limit_s: float | None = None, effort: int = EFFORT
) -> tuple[list[Group], dict[str, str]]:
    """The groups of a module, and the layers whose outputs can't be cut with the reason.

    Args:
        module: In eval mode; not changed.
        run: Calls the module with an example input.
        limit_s: Longest time, seconds; None is none. It decides whether there is an answer, never which.
        effort: Most comparisons of torch-pruning; a layer that takes more than an eighth of them is left alone.

    Returns:
        Groups in the order of the model's layers. A layer's outputs are in one group at most.

    Raises:
        InputError: The graph can't be found, or not with that effort, or not in time.
    """
    try:
        with nullcontext() if limit_s is None else time_limit(limit_s):
            return _find_groups(module, run, Effort(effort))
    except OutOfTime:
        raise InputError(f"{_LATE} within {limit_s:g} s", f"give `time_limit` more, or {_ELSEWHERE}") from None


def _find_groups(
    module: nn.Module, run: Callable[[nn.Module], Any], effort: Effort
) -> tuple[list[Group], dict[str, str]]:
    flags = [p.requires_grad for p in module.parameters()]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for parameter in module.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            graph, ends = _graph(module, run, effort)
    except OutOfSteps:
        raise _too_much() from None
    except (InputError, OutOfTime):
        raise
    except Exception as error:  # a library on a user's model: anything may be raised
        text = str(error).partition("\n")[0] or type(error).__name__
        what = f"torch-pruning can't follow this model: {type(error).__name__}: {text}"
        raise InputError(what, _ELSEWHERE) from error
    finally:
        for parameter, flag in zip(module.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    return _converted(module, graph, ends, effort)


def _too_much() -> InputError:
    return InputError(f"{_LATE} in as many steps as it may take", _ELSEWHERE)


def _graph(module: nn.Module, run: Callable[[nn.Module], Any], effort: Effort) -> tuple[Any, dict[Any, str]]:
    """torch-pruning's graph, and for its ends what stands there.

    The graph ends at normalizations that mix channels, and at the projections of attention: what they read or give
    can't be cut anyway, and to follow a transformer's branches through them can take torch-pruning forever.
    """
    ends: list[tuple[str, Tensor]] = []
    known: dict[Any, str] = {}

    def mixed(name: str) -> Any:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
            ends.extend((_MIXED.format(name), t) for t in tensors_in((args, kwargs)))
            return out.detach() if isinstance(out, Tensor) else out

        return hook

    def projected(_layer: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], out: Tensor) -> Tensor:
        ends.append((_HEADS, out))
        return out.detach()

    def forward(model: nn.Module, _inputs: Any) -> Any:
        heads = _of_attention(module)
        with ExitStack() as stack:
            # Here, behind torch-pruning's own hooks: they have to see what the layers themselves give.
            for name, layer in module.named_modules():
                if _mixes(layer) or layer in heads:
                    hook = projected if layer in heads else mixed(name)
                    stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
            ends.extend((_OUTPUT, t) for t in tensors_in(run(model)))
        # Times 1: else a layer whose result is an end would hide that anyone reads it.
        found = [(why, t * 1) for why, t in ends if t.is_floating_point() and t.requires_grad]
        known.update((t.grad_fn, why) for why, t in found)
        return [t for _, t in found]

    graph = counted_graph(effort)
    graph.build_dependency(module, None, forward_fn=forward, verbose=False)
    return graph, known


def _mixes(layer: nn.Module) -> bool:
    """True for normalizations over channels, those of transformers' own classes too."""
    alone = isinstance(layer, (_BatchNorm, _InstanceNorm))
    return type(layer).__name__.endswith("Norm") and not alone and not list(layer.children())


def _of_attention(module: nn.Module) -> set[nn.Module]:
    """The Linear layers directly inside of modules that call themselves attention."""
    holders = [m for m in module.modules() if "attention" in type(m).__name__.lower()]
    return {layer for holder in holders for layer in holder.children() if isinstance(layer, nn.Linear)}


def _found(graph: Any, names: Mapping[nn.Module, str], effort: Effort) -> Iterator[tuple[str, Any]]:
    """The first layer of each of torch-pruning's groups, and the group; where it finds none, the reason.

    Raises:
        InputError: All the effort is spent.
    """
    seen: set[nn.Module] = set()
    for layer in list(graph.module2node):
        if layer in seen or not isinstance(layer, (_ConvNd, nn.Linear)):
            continue
        effort.next_layer()
        pruner = graph.get_pruner_of_module(layer)
        try:
            found = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(axis_size(layer, "out"))))
        except OutOfSteps:
            if effort.left < 0:
                raise _too_much() from None
            found = "torch-pruning needed too many steps to find the coupled channels"
        except OutOfTime:
            raise
        except Exception as error:  # its own, of any kind
            found = f"torch-pruning cannot determine the coupled channels ({type(error).__name__})"
        seen.add(layer)
        if not isinstance(found, str):
            seen.update(item.dep.target.module for item in found if graph.is_out_channel_pruning_fn(item.dep.handler))
        yield names[layer], found


def _converted(
    module: nn.Module, graph: Any, ends: Mapping[Any, str], effort: Effort
) -> tuple[list[Group], dict[str, str]]:
    names = {layer: name for name, layer in module.named_modules()}
    tied = _tied(module)
    groups: list[Group] = []
    skipped: dict[str, str] = {}
    for root, found in _found(graph, names, effort):
        members, reason = ([], found) if isinstance(found, str) else _members(found, graph, names, ends)
        group = reason or _group(module, members, tied)
        if isinstance(group, Group):
            groups.append(group)
        else:
            outs = [m.layer for m in members if m.axis in ("out", "both")] or [root]
            skipped |= {name: group for name in outs if name not in skipped}
    order = {name: i for i, name in enumerate(names.values())}
    return sorted(groups, key=lambda group: order[group.name]), skipped | _apart(module, graph)


def _group(module: nn.Module, members: Sequence[Member], tied: Mapping[str, str]) -> Group | str:
    """The layers as a group, or why it can't be cut."""
    shared = next((m.layer for m in members if m.layer in tied), None)
    if shared is not None:
        return f"'{shared}' shares its weight with '{tied[shared]}'"
    group = _united(module, members)
    return group if group.units > 1 else "its channels can only be cut all at once"


def _apart(module: nn.Module, graph: Any) -> dict[str, str]:
    """Layers that are in no group, with the reason."""
    heads = _of_attention(module)
    found: dict[str, str] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Embedding):
            found[name] = "embeddings are left alone"
        elif isinstance(layer, (nn.Linear, _ConvNd)) and layer not in graph.module2node:
            found[name] = _HEADS if layer in heads else "it did not run on the example input"
    return found


def _members(
    found: Any, graph: Any, names: Mapping[nn.Module, str], ends: Mapping[Any, str]
) -> tuple[list[Member], str]:
    """The layers of a torch-pruning group, and why it can't be cut; empty when it can."""
    width = len(found[0].idxs)
    made = [_member(item, width, graph, names, ends) for item in found]
    reasons = (part for part in made if isinstance(part, str) and part)
    return [part for part in made if isinstance(part, Member)], next(reasons, "")


def _member(item: Any, width: int, graph: Any, names: Mapping[nn.Module, str], ends: Mapping[Any, str]) -> Member | str:
    """A layer's part in a group; or why the group can't be cut, empty for what has no channels of its own."""
    import torch_pruning as tp

    layer, handler = item.dep.target.module, item.dep.handler
    if isinstance(layer, tp.ops._OutputOp):
        return ends.get(item.dep.target.grad_fn, _OUTPUT)
    if isinstance(layer, nn.Parameter):
        return f"it meets a parameter of shape {list(layer.shape)} that belongs to no layer"
    if layer not in names:
        return ""
    out, into = graph.is_out_channel_pruning_fn(handler), graph.is_in_channel_pruning_fn(handler)
    axis: Axis = "both" if out and into else "out" if out else "in"
    try:
        axis_size(layer, axis)
    except TypeError:
        return f"it meets '{names[layer]}' ({type(layer).__name__})"
    if any(unit is None for unit in item.root_idxs):
        return f"torch-pruning can't tell which channels of '{names[layer]}' go with it"
    places: list[list[int]] = [[] for _ in range(width)]
    for place, unit in zip(item.idxs, item.root_idxs, strict=True):
        places[unit].append(place)
    return Member(names[layer], axis, tuple(tuple(sorted(p)) for p in places))


def _tied(module: nn.Module) -> dict[str, str]:
    """Layers that share a weight with another, and which."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, layer in module.named_modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                owner = first.setdefault(id(parameter), name)
                if owner != name:
                    found |= {name: owner, owner: name}
    return found


def _united(module: nn.Module, members: Sequence[Member]) -> Group:
    """The group with those channels made one unit that a grouped convolution can only lose together."""
    owner = list(range(len(members[0].places)))

    def top(unit: int) -> int:
        while owner[unit] != unit:
            unit = owner[unit]
        return unit

    for member in members:
        layer = module.get_submodule(member.layer)
        groups = layer.groups if isinstance(layer, _ConvNd) and member.axis != "both" else 1
        if groups == 1:
            continue
        size = axis_size(layer, member.axis) // groups
        first: dict[int, int] = {}
        for unit, places in enumerate(member.places):
            for place in places:
                mate = top(first.setdefault(place % size, unit))
                owner[top(unit)] = mate
    units: dict[int, list[int]] = {}
    for unit in range(len(owner)):
        units.setdefault(top(unit), []).append(unit)

    def merged(member: Member) -> Member:
        places = (sorted(p for unit in part for p in member.places[unit]) for part in units.values())
        return Member(member.layer, member.axis, tuple(tuple(part) for part in places))

    # Named after the first layer of the model that gives these channels.
    order = {name: i for i, (name, _) in enumerate(module.named_modules())}
    given = sorted((m for m in members if m.axis == "out"), key=lambda m: order[m.layer])
    rest = [m for m in members if m.axis != "out"]
    return Group(given[0].layer, tuple(merged(member) for member in (*given, *rest)))
