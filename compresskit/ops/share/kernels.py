"""Kernels that stay the same under a group of moves: then a network of them gives what its moved picture would.

A kernel becomes the mean of itself under all moves, the nearest symmetric one. A convolution with such a kernel moves
with its picture where its stride and padding do. A Linear layer that reads a whole picture gets the same mean along its
inputs. Weights that are symmetric already stay what they are. Left out: kernels that take other kernels' places when
they are turned, as in "Group Equivariant Convolutional Networks" (Cohen & Welling, 2016), which cost the group's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.share.moves import Move
from compresskit.ops.shrinking import CalibrationData

Shapes = Mapping[str, tuple[int, ...]]
"""By layer the shape of its weight with the picture's height and width last."""
_CONVS = (nn.Conv2d, nn.ConvTranspose2d)
EXACT = 1e-4
"""Relative change of an output up to which it is taken to move with its picture: float32, in a deep network."""


@torch.no_grad()
def kernels(module: nn.Module, data: CalibrationData) -> dict[str, tuple[int, ...]]:
    """The layers whose weights lie over a picture, in the order of the module.

    Args:
        module: In eval mode.
        data: Its example is run.

    Returns:
        By name the shape of the weight in which its last axes are height and width.
    """
    found: dict[str, tuple[int, ...]] = {}

    def look(name: str, pictures: _LastPicture, layer: nn.Module, args: tuple[Any, ...]) -> None:
        seen, given = pictures.last, next(tensors_in(args))
        if seen is None or given.dim() != 2 or seen[0].numel() != given.shape[1] or seen.shape[-2:].numel() == 1:
            return
        if torch.equal(seen.flatten(1), given):
            found[name] = (layer.get_parameter("weight").shape[0], *seen.shape[1:])

    pictures = _LastPicture()
    with ExitStack() as stack:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear):
                stack.callback(layer.register_forward_pre_hook(partial(look, name, pictures)).remove)
        with pictures:
            data.run(module)
    for name, layer in module.named_modules():
        if isinstance(layer, _CONVS) and layer.weight[0, 0].numel() > 1:
            found[name] = tuple(layer.weight.shape)
    return {name: found[name] for name, _ in module.named_modules() if name in found}


@torch.no_grad()
def project(module: nn.Module, shapes: Shapes, moves: tuple[Move, ...]) -> dict[str, float]:
    """Make weights the means of themselves under all moves, in place.

    Args:
        module: Holds them.
        shapes: From :func:`kernels`.
        moves: A group.

    Returns:
        By layer the share of the weight's squares that stays, 0 to 1.
    """
    kept = {}
    for name, shape in shapes.items():
        weight = module.get_submodule(name).get_parameter("weight")
        before = weight.reshape(shape)
        mean = torch.stack([move(before) for move in moves]).mean(0)
        kept[name] = float(mean.square().sum() / before.square().sum().clamp_min(1e-30))
        weight.copy_(mean.reshape(weight.shape))
    return kept


@torch.no_grad()
def parting(module: nn.Module, data: CalibrationData, moves: tuple[Move, ...]) -> str:
    """The first layer whose output doesn't move with the picture, and why that may be; empty where all do.

    Args:
        module: In eval mode.
        data: Its example is one picture.
        moves: That are tried.
    """
    ((name, x),) = data.example.items()
    plain = _outputs(module, lambda: data.forward(module, {name: x}))
    for move in moves:
        moved = _outputs(module, lambda move=move: data.forward(module, {name: move(x)}))  # type: ignore[misc]
        for before, after in zip(plain, moved, strict=True):
            wanted = move(before.out) if before.out.dim() == 4 else before.out
            parts = wanted.shape != after.out.shape
            if parts or float((after.out - wanted).norm()) > EXACT * float(wanted.norm()):
                return _why(before, module.get_submodule(before.layer), move)
    return ""


class _Given(NamedTuple):
    """What a module gave, and the height and width of the picture that it was given, empty for no picture."""

    layer: str
    out: Tensor
    size: tuple[int, ...]


def _why(given: _Given, layer: Any, move: Move) -> str:
    shown = f"'{given.layer}' ({type(layer).__name__})" if given.layer else "the model"
    found = f"{shown} gives something else after a {move.name}"
    if not isinstance(layer, nn.Conv2d) or max(layer.stride) == 1:
        return found
    found += f": with stride {max(layer.stride)} it reads other pixels of a turned picture"
    if len(given.size) != 2 or isinstance(layer.padding, str):
        return found
    fitting = [_fitting(layer, axis, size) for axis, size in enumerate(given.size)]
    if fitting == list(given.size):
        return found
    shapes = [" × ".join(map(str, sizes)) for sizes in (given.size, fitting)]
    return f"{found}; its input of {shapes[0]} would have to be {shapes[1]}"


def _fitting(layer: nn.Conv2d, axis: int, size: int) -> int:
    """The least size from this one on whose last window ends at the border, as the first one begins there."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1 - 2 * int(layer.padding[axis])
    return size + (reach - size) % layer.stride[axis]


def _outputs(module: nn.Module, run: Callable[[], Any]) -> list[_Given]:
    """What each innermost module gave in a pass, in order; what only changes the shape is left out."""
    found: list[_Given] = []

    def note(name: str, _layer: nn.Module, args: Any, out: Any) -> None:
        into = next(tensors_in(args), None)
        size = tuple(into.shape[-2:]) if into is not None and into.dim() == 4 else ()
        found.extend(_Given(name, tensor, size) for tensor in tensors_in(out) if tensor.is_floating_point())

    with ExitStack() as stack:
        for name, layer in module.named_modules():
            inner = not name or not any(True for _ in layer.children())
            if inner and not isinstance(layer, (nn.Flatten, nn.Unflatten)):
                stack.callback(layer.register_forward_hook(partial(note, name)).remove)
        run()
    return found


class _LastPicture(TorchFunctionMode):
    """Remembers the last tensor ``(n, channels, height, width)`` that any operator gave."""

    last: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() == 4:
            self.last = out
        return out
