"""Channels of a model that hang together: cut in one layer, they have to be cut in the others too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

Axis = Literal["out", "in", "both"]


@dataclass(frozen=True)
class Member:
    """One layer's part in a group.

    Attributes:
        layer: Dotted name.
        axis: ``out``: what the layer gives; ``in``: what it takes; ``both`` for layers that work on each channel alone
            (batch normalization, depthwise convolution, PReLU).
        places: For each unit of the group, its channels in this layer.
    """

    layer: str
    axis: Axis
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Channels of several layers that are kept or cut together.

    Attributes:
        name: The first layer that gives them.
        members: All layers concerned.
    """

    name: str
    members: tuple[Member, ...]

    @property
    def units(self) -> int:
        """How many can be cut one by one; a unit is one channel, or several that a grouped convolution ties."""
        return len(self.members[0].places)

    @property
    def per_unit(self) -> int:
        """Channels of a unit in the first layer."""
        return len(self.members[0].places[0])

    def of(self, *axes: Axis) -> list[Member]:
        """The members on these sides."""
        return [member for member in self.members if member.axis in axes]


def axis_size(layer: nn.Module, axis: Axis) -> int:
    """Channels that a layer has on one side."""
    if isinstance(layer, nn.Linear):
        return layer.in_features if axis == "in" else layer.out_features
    if isinstance(layer, _ConvNd):
        return layer.in_channels if axis == "in" else layer.out_channels
    if isinstance(layer, (_BatchNorm, _InstanceNorm)):
        return int(layer.num_features)
    if isinstance(layer, nn.PReLU):
        return int(layer.num_parameters)
    raise TypeError(f"{type(layer).__name__} has no channels that can be cut")
