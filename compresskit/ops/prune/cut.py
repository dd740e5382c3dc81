"""Channels cut out of layers, left out for a while, or silenced: three ways to one function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from compresskit.ops.prune.graph import Axis, Group, Member, axis_size

Kept = Mapping[str, Sequence[int]]
"""Group name to the units that stay, ascending; groups that aren't in it stay whole."""


@dataclass(frozen=True)
class Places:
    """What stays of one layer; None for a side that stays whole.

    Attributes:
        out: Channels that the layer goes on giving.
        into: Channels that it goes on taking; of a grouped convolution those of its first group, the others alike.
    """

    out: Tensor | None = None
    into: Tensor | None = None


def depthwise(layer: nn.Module) -> bool:
    """True for a convolution that works on each channel alone."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels == layer.out_channels > 1


def places(module: nn.Module, groups: Iterable[Group], kept: Kept) -> dict[str, Places]:
    """What stays of each layer that loses channels."""
    gone: dict[str, dict[Axis, set[int]]] = {}
    for group in groups:
        stay = set(kept.get(group.name, range(group.units)))
        for member in group.members:
            lost = {p for unit, part in enumerate(member.places) if unit not in stay for p in part}
            if lost:
                gone.setdefault(member.layer, {}).setdefault(member.axis, set()).update(lost)
    return {name: _stays(module.get_submodule(name), sides) for name, sides in gone.items()}


def _stays(layer: nn.Module, gone: Mapping[Axis, set[int]]) -> Places:
    def stays(axis: Axis, size: int) -> Tensor | None:
        lost = gone.get(axis)
        return None if not lost else torch.tensor([i for i in range(size) if i not in lost], dtype=torch.long)

    if "both" in gone:
        return Places(stays("both", axis_size(layer, "both")))
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    into = stays("in", axis_size(layer, "in") // groups) if "in" in gone else None
    return Places(stays("out", axis_size(layer, "out")) if "out" in gone else None, into)


@torch.no_grad()
def cut(module: nn.Module, groups: Iterable[Group], kept: Kept) -> None:
    """Take the other units out of a module, in place."""
    for name, stay in places(module, groups, kept).items():
        shrink(module.get_submodule(name), stay)


@torch.no_grad()
def shrink(layer: nn.Module, stay: Places) -> None:
    """Give one layer new widths, in place.

    Args:
        layer: Linear, a convolution, batch or instance normalization, or PReLU.
        stay: Its channels, inside of the layer's range.
    """
    for leaf, index, axis in _slices(layer, stay):
        tensor = getattr(layer, leaf, None)
        if index is None or not isinstance(tensor, Tensor):
            continue
        part = tensor.detach().index_select(axis, index.to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            setattr(layer, leaf, nn.Parameter(part, requires_grad=tensor.requires_grad))
        else:
            setattr(layer, leaf, part)
    _resize(layer, stay)


@contextmanager
def narrowed(module: nn.Module, stay: Mapping[str, Places]) -> Iterator[None]:
    """The module with narrower layers for a while, through which gradients reach the whole layers' parameters.

    Args:
        module: Is as before afterwards: what batch normalizations note of narrower passes is forgotten too.
        stay: What stays of each layer; see :func:`places`.
    """
    names = dict.fromkeys((*stay, *(n for n, m in module.named_modules() if isinstance(m, _BatchNorm))))
    layers = {name: module.get_submodule(name) for name in names}
    saved = [(layer, dict(layer._parameters), dict(layer._buffers), _sizes(layer)) for layer in layers.values()]
    try:
        for name, layer in layers.items():
            for leaf, buffer in layer._buffers.items():
                layer._buffers[leaf] = None if buffer is None else buffer.clone()
            if name in stay:
                _lend(layer, stay[name])
        yield
    finally:
        for layer, parameters, buffers, sizes in saved:
            layer._parameters.update(parameters)
            layer._buffers.update(buffers)
            layer.__dict__.update(sizes)


def _lend(layer: nn.Module, stay: Places) -> None:
    """Put parts of a layer's tensors in their place, with their gradient."""
    for leaf, index, axis in _slices(layer, stay):
        held: dict[str, Any] = layer._parameters if leaf in layer._parameters else layer._buffers
        if index is not None and held.get(leaf) is not None:
            held[leaf] = held[leaf].index_select(axis, index.to(held[leaf].device))
    _resize(layer, stay)


def _slices(layer: nn.Module, stay: Places) -> list[tuple[str, Tensor | None, int]]:
    """The tensors of a layer with the places that stay along an axis; None for all, and tensors that it may lack."""
    if depthwise(layer):
        return [("weight", stay.out, 0), ("bias", stay.out, 0)]
    if not isinstance(layer, (nn.Linear, _ConvNd)):
        return [(leaf, stay.out, 0) for leaf in ("weight", "bias", "running_mean", "running_var")]
    turned = isinstance(layer, _ConvTransposeNd)
    out = ("weight", _in_group(layer, stay.out) if turned else stay.out, 1 if turned else 0)
    into = ("weight", _in_all(layer, stay.into) if turned else stay.into, 0 if turned else 1)
    return [out, into, ("bias", stay.out, 0)]


_SIZES = ("groups", "in_channels", "out_channels", "in_features", "out_features", "num_features", "num_parameters")


def _sizes(layer: nn.Module) -> dict[str, Any]:
    return {name: vars(layer)[name] for name in _SIZES if name in vars(layer)}


def _resize(layer: Any, stay: Places) -> None:
    """Let a layer say how wide its tensors are by now."""
    if depthwise(layer):
        layer.groups = layer.in_channels = layer.out_channels = int(layer.weight.shape[0])
    elif isinstance(layer, (nn.Linear, _ConvNd)):
        first, second = int(layer.weight.shape[0]), int(layer.weight.shape[1])
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = first, second
        else:
            second *= layer.groups
            turned = isinstance(layer, _ConvTransposeNd)
            layer.out_channels, layer.in_channels = (second, first) if turned else (first, second)
    elif stay.out is not None and isinstance(layer, (_BatchNorm, _InstanceNorm)):
        layer.num_features = len(stay.out)
    elif stay.out is not None and isinstance(layer, nn.PReLU):
        layer.num_parameters = len(stay.out)


def _in_group(layer: Any, channels: Tensor | None) -> Tensor | None:
    """Output channels as a transposed convolution's weight has them: those of one group."""
    return None if channels is None else channels[channels < layer.out_channels // layer.groups]


def _in_all(layer: Any, local: Tensor | None) -> Tensor | None:
    """Input channels of the first group as those of all groups."""
    size = layer.in_channels // layer.groups
    return None if local is None else torch.cat([local + size * g for g in range(layer.groups)])


@torch.no_grad()
def mask(module: nn.Module, groups: Iterable[Group], kept: Kept) -> None:
    """Silence the other units of a module, in place: its shapes stay, and it computes what the cut one computes."""
    for group in groups:
        stay = set(kept.get(group.name, range(group.units)))
        for member in group.members:
            lost = sorted(p for unit, part in enumerate(member.places) if unit not in stay for p in part)
            if lost:
                _silence(module.get_submodule(member.layer), member, torch.tensor(lost))


def _silence(layer: nn.Module, member: Member, lost: Tensor) -> None:
    if member.axis == "in":
        turned = isinstance(layer, _ConvTransposeNd)
        size = axis_size(layer, "in") // (layer.groups if isinstance(layer, _ConvNd) else 1)
        weight = layer.get_parameter("weight")
        if turned:
            weight[lost] = 0
        else:
            weight[:, lost[lost < size]] = 0
        return
    if isinstance(layer, nn.PReLU):
        return
    if isinstance(layer, _ConvTransposeNd) and member.axis == "out":
        layer.weight[:, lost[lost < layer.out_channels // layer.groups]] = 0
    elif layer._parameters.get("weight") is not None:
        layer.get_parameter("weight")[lost] = 0
    for leaf, value in (("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        tensor = getattr(layer, leaf, None)
        if isinstance(tensor, Tensor):
            tensor[lost] = value
