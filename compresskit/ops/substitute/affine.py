"""What convolutions, Linear layers, batch normalizations and their sums compute together, as one layer.

Only what is exact everywhere is put together. A convolution behind another one is, where one of both looks at single
places, and no padding of the second stands for the bias of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

Pair = tuple[int, int]


@dataclass(frozen=True)
class Affine:
    """``y = W x + b`` at each place of a picture, or for each vector.

    Attributes:
        weight: float64 ``(outputs, inputs of a group, height, width)``; ``(outputs, inputs)`` for vectors.
        bias: float64 ``(outputs,)``; None without one, which is a matter of the architecture and not of values.
        stride: Of the window.
        padding: With zeros, on both sides.
        groups: Of a convolution.
        cost: Products at a place of the input, with what it was put together from.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1
    cost: float = 0.0

    @property
    def pictures(self) -> bool:
        """False for vectors."""
        return self.weight.dim() == 4

    @property
    def products(self) -> float:
        """Products at a place of the input when it is one layer."""
        return self.weight.numel() / (self.stride[0] * self.stride[1])

    @property
    def single(self) -> bool:
        """True where each output looks at one place, the one that it stands at."""
        return not self.pictures or (tuple(self.weight.shape[2:]) == (1, 1) and self.padding == (0, 0))

    def scaled(self, by: Tensor, shift: Tensor | None = None) -> Affine:
        """Each output times a number, and another one added."""
        shape = (-1, *(1,) * (self.weight.dim() - 1))
        bias = None if self.bias is None else self.bias * by
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return replace(self, weight=self.weight * by.reshape(shape), bias=bias)

    def dense(self) -> Affine:
        """The same without groups: zeros where a group takes no input."""
        if self.groups == 1:
            return self
        parts = self.weight.chunk(self.groups)
        outputs, inputs = parts[0].shape[:2]
        total = self.weight.new_zeros(outputs * self.groups, inputs * self.groups, *self.weight.shape[2:])
        for i, part in enumerate(parts):
            total[i * outputs : (i + 1) * outputs, i * inputs : (i + 1) * inputs] = part
        return replace(self, weight=total, groups=1)

    def then(self, after: Affine) -> Affine | None:
        """Both, one behind the other; None where that isn't one layer, or not exactly."""
        if self.pictures != after.pictures:
            return None
        first, second = self.dense(), after.dense()
        if second.single:
            weight = torch.einsum("om,mi...->oi...", second.weight.flatten(1), first.weight)
            stride = _times(first.stride, second.stride)
        elif first.single and first.stride == (1, 1) and (first.bias is None or second.padding == (0, 0)):
            weight = torch.einsum("om...,mi->oi...", second.weight, first.weight.flatten(1))
            stride = second.stride
        else:
            return None
        bias = second.bias
        if first.bias is not None:
            through = second.weight.flatten(2).sum(2) if second.pictures else second.weight
            bias = through @ first.bias if bias is None else through @ first.bias + bias
        padding = first.padding if second.single else second.padding
        cost = self.cost + after.cost / (self.stride[0] * self.stride[1])
        return Affine(weight, bias, stride, padding, 1, cost)

    def plus(self, other: Affine) -> Affine | None:
        """The sum of both, of the same input; None where they don't fit."""
        if self.pictures != other.pictures or self.stride != other.stride:
            return None
        one, two = (self, other) if self.groups == other.groups else (self.dense(), other.dense())
        if one.weight.shape[:2] != two.weight.shape[:2]:
            return None
        if one.pictures and one.weight[0, 0].numel() < two.weight[0, 0].numel():
            one, two = two, one
        weight = two.weight
        if one.pictures:
            front = [a - b for a, b in zip(one.padding, two.padding, strict=True)]
            behind = [a - b - c for a, b, c in zip(one.weight.shape[2:], weight.shape[2:], front, strict=True)]
            if min(*front, *behind) < 0 or front != behind:
                return None
            weight = F.pad(weight, (front[1], behind[1], front[0], behind[0]))
        bias = one.bias if two.bias is None else two.bias if one.bias is None else one.bias + two.bias
        return replace(one, weight=one.weight + weight, bias=bias, cost=self.cost + other.cost)

    def layer(self, like: Tensor) -> nn.Module:
        """The one layer that computes it, with the dtype and on the device of another tensor."""
        where: Any = {"bias": self.bias is not None, "device": like.device, "dtype": like.dtype}
        outputs, inputs = self.weight.shape[:2]
        made: nn.Module
        if self.pictures:
            window: Any = {"stride": self.stride, "padding": self.padding, "groups": self.groups}
            kernel = tuple(int(n) for n in self.weight.shape[2:])
            made = nn.Conv2d(inputs * self.groups, outputs, kernel, **window, **where)  # type: ignore[arg-type]
        else:
            made = nn.Linear(inputs, outputs, **where)
        with torch.no_grad():
            made.get_parameter("weight").copy_(self.weight)
            if self.bias is not None:
                made.get_parameter("bias").copy_(self.bias)
        return made.eval()


def _times(one: Pair, two: Pair) -> Pair:
    return one[0] * two[0], one[1] * two[1]


def identity(channels: int, like: Affine) -> Affine:
    """What gives each channel as it is, in the form of another one: with its groups where that is possible."""
    if not like.pictures:
        return Affine(torch.eye(channels, dtype=torch.float64, device=like.weight.device), None)
    own = channels // like.groups
    weight = torch.eye(own, dtype=torch.float64, device=like.weight.device).repeat(like.groups, 1)
    return Affine(weight[:, :, None, None], None, groups=like.groups)


def of_layer(layer: nn.Module) -> Affine | None:
    """What a layer computes; None for one that isn't affine, or of another kind."""
    if type(layer) is nn.Linear:
        weight = layer.weight.detach().double()
        return Affine(weight, _double(layer.bias), cost=float(weight.numel()))
    if type(layer) is nn.Conv2d and layer.dilation == (1, 1) and layer.padding_mode == "zeros":
        if isinstance(layer.padding, str):
            return None
        weight = layer.weight.detach().double()
        stride: Any = layer.stride
        padding: Any = layer.padding
        cost = weight.numel() / (stride[0] * stride[1])
        return Affine(weight, _double(layer.bias), tuple(stride), tuple(padding), layer.groups, cost)
    return None


def of_norm(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of each channel, of a batch normalization in eval mode; None for anything else."""
    if not isinstance(layer, _BatchNorm) or layer.running_mean is None or layer.running_var is None:
        return None
    factor = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.weight is not None:
        factor = factor * layer.weight.detach().double()
    shift = -layer.running_mean.double() * factor
    return factor, shift if layer.bias is None else shift + layer.bias.detach().double()


def _double(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().double()
