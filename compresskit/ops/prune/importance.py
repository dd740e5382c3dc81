"""What a unit of a group is worth, by the criteria of the literature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compresskit.errors import InputError, UsageError
from compresskit.ops.prune.graph import Axis, Group, Member

Moment = Callable[[str], Tensor]
"""Layer name to the mean square of each of its inputs' channels."""


def by_norm(module: nn.Module, group: Group, power: int) -> Tensor:
    """Sum of absolute values (1) or squares (2) of all weights that give or read a unit: float ``(units,)``.

    "Pruning Filters for Efficient ConvNets" (Li et al., 2017), over the whole group as in DepGraph (Fang et al., 2023).
    """
    return _summed(group, lambda m: _per_channel(module, m, lambda w: w.abs() ** power), ("out", "in"))


def by_scale(module: nn.Module, group: Group) -> Tensor:
    """Absolute scale of the batch normalizations behind a unit: "Network Slimming" (Liu et al., 2017).

    Raises:
        UsageError: No normalization with a scale lies behind the group.
    """
    norms = [m for m in group.of("both") if isinstance(module.get_submodule(m.layer), nn.modules.batchnorm._BatchNorm)]
    scales = [m for m in norms if module.get_submodule(m.layer).weight is not None]
    if not scales:
        raise UsageError(f"'{group.name}' has no batch normalization behind it", "take another `importance`")
    part = Group(group.name, tuple(scales))
    return _summed(part, lambda m: module.get_submodule(m.layer).get_parameter("weight").detach().abs(), ("both",))


def by_activation(module: nn.Module, group: Group, squares: Moment) -> Tensor:
    """Mean square of what a unit adds to the layers that read it: of its activation, times its weights there.

    "Wanda" (Sun et al., 2024) on whole channels.
    """

    def strength(member: Member) -> Tensor:
        return _per_channel(module, member, lambda w: w.square()) * squares(member.layer)

    return _summed(group, strength, ("in",))


def by_gradient(module: nn.Module, group: Group, gradients: Sequence[Mapping[str, Tensor]], *, second: bool) -> Tensor:
    """How the loss would change without a unit, to first or second order.

    First order: the square of ``Σ w · ∂L/∂w`` over a unit's weights, averaged over batches ("Importance Estimation for
    Neural Network Pruning", Molchanov et al., 2019). Second order: ``½ Σ w² · (∂L/∂w)²``, the diagonal of the
    empirical Fisher matrix in the place of the Hessian (optimal brain damage on channels: OBD-C of "EigenDamage", Wang
    et al., 2019, without its Kronecker factors).

    Args:
        module: The module.
        group: The group.
        gradients: Of each batch, by layer: of its weight.
        second: Second order.
    """
    total = torch.zeros(group.units)
    for slopes in gradients:
        first = partial(_moved, module, slopes, second)
        total += _summed(group, first, ("out",)) ** (1 if second else 2)
    return total / max(1, len(gradients))


def _moved(module: nn.Module, slopes: Mapping[str, Tensor], second: bool, member: Member) -> Tensor:
    slope = slopes[member.layer]
    return _per_channel(module, member, lambda w: 0.5 * (w * slope).square() if second else w * slope)


def gradients(
    module: nn.Module, layers: Sequence[str], batches: Sequence[Any], loss: Callable[[nn.Module, Any], Tensor]
) -> Iterator[dict[str, Tensor]]:
    """For each batch the gradient of the loss by each layer's weight; the module's own gradients are left empty.

    Args:
        module: In eval mode.
        layers: Names.
        batches: What ``loss`` takes.
        loss: A scalar.
    """
    weights = [module.get_submodule(name).get_parameter("weight") for name in layers]
    flags = [w.requires_grad for w in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad():
                found = torch.autograd.grad(loss(module, batch), weights, allow_unused=True)
            yield {n: torch.zeros_like(w) if g is None else g for n, w, g in zip(layers, weights, found, strict=True)}
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)


def own_loss(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Cross-entropy against labels; without, against the model's own most likely class; else half the mean square.

    Args:
        outputs: The model's first output.
        labels: int64 ``(samples,)``, for outputs ``(samples, classes)``; -1 where there is none.

    Raises:
        InputError: A label that the model has no class for.
    """
    if outputs.dim() > 1 and outputs.shape[-1] > 1:
        flat = outputs.flatten(0, -2)
        known = flat.detach().argmax(-1)
        if labels is not None:
            if int(labels.max()) >= flat.shape[-1]:
                raise InputError(f"label {int(labels.max())}, but the model has {flat.shape[-1]} classes")
            known = torch.where(labels < 0, known, labels)
        return F.cross_entropy(flat, known)
    return 0.5 * outputs.square().mean()


def _summed(group: Group, value: Callable[[Member], Tensor], axes: tuple[Axis, ...]) -> Tensor:
    """Sum of a value of channels over the members on these sides, unit by unit."""
    total = torch.zeros(group.units, dtype=torch.float64)
    for member in group.of(*axes):
        channels = value(member).double()
        local = len(channels)
        total += torch.stack([channels[sorted({p % local for p in part})].sum() for part in member.places])
    return total.float()


def _per_channel(module: nn.Module, member: Member, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A value of each weight, summed over the weights of each channel on the member's side."""
    layer = module.get_submodule(member.layer)
    weight = change(layer.get_parameter("weight").detach())
    turned = isinstance(layer, _ConvTransposeNd)
    axis = int((member.axis == "in") != turned)
    if isinstance(layer, _ConvNd) and turned and member.axis == "out" and layer.groups > 1:
        axis = 1
    return weight.transpose(0, axis).flatten(1).sum(1)
