"""Layers of one kind made one: their parameters are stored once, and used in several places.

Runs of transformer layers that share parameters are those of "ALBERT: A Lite BERT for Self-supervised Learning of
Language Representations" (Lan et al., 2020), here made of a trained model: a shared weight starts as the least-squares
solution for what all layers of its run were given and gave. Left out: sharing of attention or feed-forward alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.share import TiedFacts
from compresskit.ops.calibration.gram import damped, damping_of
from compresskit.ops.calibration.moments import Collector, Moments, collectable
from compresskit.ops.packed.modules import layer_of_card
from compresskit.ops.shrinking import CalibrationData

_SINGLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)


def runs_of(module: nn.Module, length: int) -> list[list[str]]:
    """Runs of neighbouring blocks of a list that have parameters of the same names and shapes, in the module's order.

    Args:
        module: Any.
        length: Blocks of a run; what is left at the end of a list makes a shorter one.
    """
    found: list[list[str]] = []
    for name, holder in module.named_modules():
        if not isinstance(holder, (nn.ModuleList, nn.Sequential)) or any(
            name.startswith(f"{n}.") for n in _flat(found)
        ):
            continue
        run: list[str] = []
        for leaf, block in holder.named_children():
            full = f"{name}.{leaf}" if name else leaf
            alike = run and _shapes(block) == _shapes(module.get_submodule(run[0])) and len(run) < length
            if not alike:
                found.append(run := [])
            if _shapes(block) and len(list(block.children())):
                run.append(full)
    return [run for run in found if len(run) > 1]


def alike(module: nn.Module, least: float) -> list[list[str]]:
    """Groups of single layers of one shape whose weights have at least this cosine, each with the group's first."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _SINGLE)}
    groups: list[list[str]] = []
    for name, layer in layers.items():
        for group in groups:
            first = layers[group[0]]
            fits = type(first) is type(layer) and _shapes(first) == _shapes(layer) and first.weight is not layer.weight
            if fits and likeness(first, layer) >= least:
                group.append(name)
                break
        else:
            groups.append([name])
    return [group for group in groups if len(group) > 1]


def likeness(one: nn.Module, other: nn.Module) -> float:
    """Cosine of all parameters of two modules of the same shapes."""
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    product = sum(float((a.detach().double() * b.detach().double()).sum()) for a, b in pairs)
    norms = [sum(float(p.detach().double().square().sum()) for p in of.parameters()) for of in (one, other)]
    return product / max(math.sqrt(norms[0] * norms[1]), 1e-30)


@torch.no_grad()
def tie(
    module: nn.Module, groups: Sequence[Sequence[str]], data: CalibrationData, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, TiedFacts], int]:
    """Make the modules of each group share the parameters of its first one, in place.

    Args:
        module: In eval mode.
        groups: Names of modules with parameters of the same names and shapes.
        data: What shared weights are fitted on; without batches they are means.
        progress: Called after each batch.

    Returns:
        What was tied to what, and how many layers were fitted.
    """
    families = [family for group in groups for family in _families(module, group)]
    moments = _moments(module, [name for family in families for name in family], data, progress)
    facts = {}
    for group in groups:
        first = module.get_submodule(group[0])
        for name in group[1:]:
            near = round(likeness(first, module.get_submodule(name)), 4)
            facts[name] = TiedFacts(owner=group[0], likeness=near, about=f"shares the parameters of {group[0]}")
    solved = [_solved(module, family, moments) for family in families]
    for group in groups:
        parts = [dict(module.get_submodule(name).named_parameters()) for name in group]
        for leaf, parameter in parts[0].items():
            parameter.copy_(torch.stack([part[leaf] for part in parts]).mean(0))
    for family, found in zip(families, solved, strict=True):
        if found is not None:
            layer: Any = module.get_submodule(family[0])
            layer.weight.copy_(found[0])
            if layer.bias is not None:
                layer.bias.copy_(found[1])
    share(module, {name: fact.owner for name, fact in facts.items()})
    return facts, sum(found is not None for found in solved)


def share(module: nn.Module, owners: Mapping[str, str]) -> None:
    """Give modules the parameters of others.

    Args:
        module: Changed in place.
        owners: Name of a module to that of another with parameters of the same names and shapes.

    Raises:
        InputError: There is no such module, or its parameters differ.
    """
    for name, owner in owners.items():
        one, other = layer_of_card(module, owner, "is shared"), layer_of_card(module, name, "was tied")
        if _shapes(one) != _shapes(other):
            raise InputError(f"'{name}' can't share the parameters of '{owner}': their shapes differ")
        for leaf, parameter in one.named_parameters(remove_duplicate=False):
            holder, _, last = leaf.rpartition(".")
            setattr(other.get_submodule(holder), last, parameter)


def _flat(runs: Sequence[Sequence[str]]) -> list[str]:
    return [name for run in runs for name in run]


def _shapes(block: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in block.named_parameters(remove_duplicate=False)}


def _families(module: nn.Module, group: Sequence[str]) -> list[list[str]]:
    """The layers of a group's modules that become one, those with inputs that can be written as rows."""
    inner = [n for n, layer in module.get_submodule(group[0]).named_modules() if collectable(layer)]
    return [[f"{name}.{leaf}" if leaf else name for name in group] for leaf in inner]


def _moments(
    module: nn.Module, names: Sequence[str], data: CalibrationData, progress: Callable[[str, int, int], None]
) -> dict[str, Moments]:
    collectors = {name: Collector(module.get_submodule(name)) for name in names}

    def note(collector: Collector, _layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        collector.add(args[0].detach())

    with ExitStack() as stack:
        for name, collector in collectors.items():
            hook = module.get_submodule(name).register_forward_pre_hook(partial(note, collector))
            stack.callback(hook.remove)
        for done, batch in enumerate(data.batches, 1):
            data.forward(module, batch)
            progress("measure", done, len(data.batches))
    found = {name: collector.moments() for name, collector in collectors.items()}
    return {name: seen for name, seen in found.items() if seen is not None}


def _solved(module: nn.Module, family: Sequence[str], moments: Mapping[str, Moments]) -> tuple[Tensor, Tensor] | None:
    """The weight, and the bias, that gives in least squares what each layer of a family gave on its own inputs."""
    if any(name not in moments for name in family):
        return None
    seen = [moments[name] for name in family]
    layers: list[Any] = [module.get_submodule(name) for name in family]
    gram = torch.stack([one.gram for one in seen]).sum(0)
    flat = [layer.weight.float().reshape(len(gram), -1, gram.shape[1]) for layer in layers]
    wanted = torch.stack([w @ one.gram for w, one in zip(flat, seen, strict=True)]).sum(0)
    start = torch.stack(flat).mean(0)
    full = damped(gram, damping_of(seen[0], None))
    weight = start + torch.linalg.solve(full, (wanted - start @ gram).mT).mT
    biases = []
    for layer, w, one in zip(layers, flat, seen, strict=True):
        bias = torch.zeros(w.shape[0] * w.shape[1]) if layer.bias is None else layer.bias.float()
        biases.append(bias + ((w - weight) @ one.mean.unsqueeze(2)).reshape(-1))
    if not weight.isfinite().all():
        return None
    like = layers[0].weight
    return weight.reshape(like.shape).to(like.dtype), torch.stack(biases).mean(0).to(like.dtype)
