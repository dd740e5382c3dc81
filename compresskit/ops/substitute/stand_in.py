"""One fitted layer in the place of a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import Fitted, StandInFacts
from compresskit.ops.packed.modules import layer_of_card, set_module
from compresskit.ops.substitute.recorder import ACTIVATIONS, placed

SIZES: dict[Fitted, int] = {"1x1": 1, "3x3": 3}
"""Places of a convolution's window along an axis."""
_KEPT = (bool, int, float, str, type(None))


class StandIn(nn.Module):
    """A Linear layer or a convolution, and what the block that it stands in for ended with.

    It is called as the block was, and returns the same kind of value. The layers in it are plain, so whatever comes
    later (pruning, quantization, export) treats them as any other.

    Args:
        block: What it stands in for: gives dtype, device, the normalization at its end, and the plain values that a
            model's code may look up in its blocks.
        fact: What it is.

    Attributes:
        layer: The fitted one.
        end: An activation, a normalization, or nothing.
    """

    def __init__(self, block: nn.Module, fact: StandInFacts) -> None:
        super().__init__()
        self.layer = _layer(fact, next(p for p in block.parameters() if p.is_floating_point()))
        self.end: nn.Module = nn.Identity()
        if fact.activation is not None:
            self.end = ACTIVATIONS[fact.activation]()
        elif fact.norm is not None:
            self.end = block.get_submodule(fact.norm)
        self._place, self._values = fact.place, fact.values
        keep_plain(self, block)
        self.train(block.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take what the block took, and return as many values, the first of which is the layer's."""
        out = self.end(self.layer(placed(self._place, args, kwargs)))
        return (out, *(None,) * (self._values - 1)) if self._values else out

    @torch.no_grad()
    def fill(self, weight: Tensor, bias: Tensor) -> StandIn:
        """Take over a weight and a bias of any shapes that fit."""
        own, level = self.layer.get_parameter("weight"), self.layer.get_parameter("bias")
        own.copy_(weight.reshape(own.shape))
        level.copy_(bias.reshape(level.shape))
        return self


def keep_plain(new: nn.Module, block: nn.Module) -> None:
    """Give a module the plain values of a block that it takes the place of: a model's code may look them up."""
    for name, value in vars(block).items():
        if isinstance(value, _KEPT) and not hasattr(new, name):
            setattr(new, name, value)


def _layer(fact: StandInFacts, like: Tensor) -> nn.Module:
    where: Any = {"device": like.device, "dtype": like.dtype}
    outputs, inputs = fact.shape[:2]
    if fact.kind == "linear":
        return nn.Linear(inputs, outputs, **where)
    size = SIZES[fact.kind]
    return nn.Conv2d(inputs, outputs, size, stride=fact.stride, padding=size // 2, **where)


def replay(module: nn.Module, layers: Any) -> None:
    """Put empty stand-ins into a freshly built architecture, in place; values are loaded afterwards.

    Args:
        module: The original architecture.
        layers: Name to :class:`StandInFacts`.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    for name, fact in layers.items():
        block = layer_of_card(module, name, "was substituted")
        size = SIZES.get(fact.kind)
        wanted = 2 if size is None else 4
        if len(fact.shape) != wanted or (size is not None and fact.shape[2:] != [size, size]):
            raise InputError(f"layer '{name}': a {fact.kind} has no weight {tuple(fact.shape)}", "the card is damaged")
        if fact.shape[0] * fact.shape[1] * (size or 1) ** 2 >= sum(p.numel() for p in block.parameters()):
            raise InputError(f"layer '{name}': what stands in for it takes more than it", "the card is damaged")
        if fact.norm is not None and not isinstance(layer_of_card(block, fact.norm, "was kept"), nn.LayerNorm):
            raise InputError(f"layer '{name}' has no normalization '{fact.norm}'", "check `arch` and `arch_args`")
        put(module, name, StandIn(block, fact), fact.aim)
    renumber(module)


def put(module: nn.Module, name: str, stand_in: nn.Module, aim: str | None = None) -> None:
    """Put a stand-in into a module, in place.

    Args:
        module: Holds what is replaced.
        name: Of what is replaced.
        stand_in: What is put there.
        aim: Name of the layer whose work it does too, which is left out.

    Raises:
        InputError: There is no layer of that name.
    """
    if aim is not None:
        layer_of_card(module, aim, "was left out")
        set_module(module, aim, nn.Identity())
    set_module(module, name, stand_in)


def renumber(module: nn.Module) -> None:
    """Number the attention layers that are left anew: a cache of keys and values counts tokens in the first of them.

    Models whose layers are of several types keep their numbers, since these tell the types.
    """
    if len(set(getattr(getattr(module, "config", None), "layer_types", None) or ())) > 1:
        return
    numbered = [m for m in module.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    attention: list[Any] = [
        m for m in numbered if not isinstance(m, StandIn) and any("weight" in c._parameters for c in m.children())
    ]
    numbers = sorted({m.layer_idx for m in attention})
    for part in attention:
        part.layer_idx = numbers.index(part.layer_idx)
