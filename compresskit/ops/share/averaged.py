"""A module that gives the mean of its outputs for all moves of its picture: invariant, or equivariant, by construction.

A vector a sample stays the same when the picture is moved; an output that is a picture moves with it. The mean over a
group's orbit is the Reynolds operator, as in "Group Equivariant Convolutional Networks" (Cohen & Welling, 2016), there
for what their layers avoid. The module's class gets a subclass with another ``forward``; no tensor changes its name.
All moved pictures go through the module as one batch, so a graph holds its layers once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.share.moves import GROUPS


class Symmetric(nn.Module):
    """Mixed into the class of a module whose outputs are averaged.

    Attributes:
        group: Key of :data:`~compresskit.ops.share.moves.GROUPS`.
    """

    group: str

    def _averaged(self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A pass of the module, whose own code is ``body``."""
        moves = GROUPS[self.group]
        x = picture_in(args, kwargs)
        orbit = torch.cat([move(x) for move in moves])

        def exchanged(value: Any) -> Any:
            return orbit if value is x else value

        def mean(out: Tensor) -> Tensor:
            each = out.reshape(len(moves), x.shape[0], *out.shape[1:])
            if out.dim() != 4:
                return each.mean(0)
            return torch.stack([move.undo(one) for move, one in zip(moves, each.unbind(0), strict=True)]).mean(0)

        out = body(*map(exchanged, args), **{name: exchanged(value) for name, value in kwargs.items()})
        return mapped(out, mean)


def picture_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The picture among the arguments of a module: float ``(n, channels, height, width)``.

    Raises:
        InputError: There is none.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
            return value
    raise InputError("a model that is averaged over moves of its picture was called without one")


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples, lists and dicts with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        items = {key: mapped(item, change) for key, item in value.items()}
        return items if type(value) is dict else type(value)(**items)
    if isinstance(value, (tuple, list)):
        made = [mapped(item, change) for item in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value


def attach(module: nn.Module, group: str) -> None:
    """Let a module give the mean of its outputs over a group of moves, in place.

    Args:
        module: Takes one picture.
        group: Key of :data:`~compresskit.ops.share.moves.GROUPS`.

    Raises:
        InputError: It is averaged already.
    """
    if isinstance(module, Symmetric):
        raise InputError(f"the outputs of this model are averaged over {module.group} already")
    module.__class__ = _symmetric(type(module))  # type: ignore[arg-type]
    module.group = group  # type: ignore[assignment]


def refused(out: Any, rows: int, *, square: bool) -> str:
    """Why the outputs of a module can't be averaged; empty where they can.

    Args:
        out: What it gave.
        rows: Samples that it was given.
        square: The group has quarter turns.
    """
    for tensor in tensors_in(out):
        shape = " × ".join(map(str, tensor.shape))
        if tensor.dim() not in (2, 4) or not tensor.is_floating_point():
            return f"an output of {shape} is neither a vector a sample nor a picture: how it moves is not known"
        if len(tensor) != rows:
            return f"an output of {shape} has no row for each of {rows} samples"
        if square and tensor.dim() == 4 and tensor.shape[-1] != tensor.shape[-2]:
            return f"an output of {shape} is no square picture, and can't be turned by quarters"
    return ""


@functools.cache
def _symmetric(base: type[nn.Module]) -> type[nn.Module]:
    """The class of modules of a class that are averaged."""

    @functools.wraps(base.forward)
    def forward(self: Symmetric, *args: Any, **kwargs: Any) -> Any:
        return self._averaged(functools.partial(base.forward, self), args, kwargs)

    names = {"forward": forward, "__module__": base.__module__, "__qualname__": f"{Symmetric.__name__}.{base.__name__}"}
    return type(base.__name__, (Symmetric, base), names)
