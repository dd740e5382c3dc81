"""Larger patches of a vision transformer, which are fewer: its patch embedding and positions are resampled.

"FlexiViT: One Model for All Patch Sizes" (Beyer et al., 2023), section 3.4: the weights of the embedding are resized so
that a patch enlarged by bilinear interpolation is embedded as it was. Left out: training with patches of many sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.facts.substitute import PatchesFacts
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.packed.modules import layer_of_card, set_module
from compresskit.ops.shrinking import CalibrationData

_MOST_IN_FRONT = 16


@dataclass(frozen=True)
class Patches:
    """How a model cuts its images.

    Attributes:
        name: Of the convolution that embeds the patches.
        size: Pixels a side.
        image: Height and width in pixels.
        positions: Names of its parameters and buffers with a row for each patch, ``(1, rows, width)``.
    """

    name: str
    size: int
    image: tuple[int, int]
    positions: tuple[str, ...]

    @property
    def sizes(self) -> list[int]:
        """Larger ones that cut the images without a rest, at least four patches, the smallest first."""
        return [s for s in range(self.size + 1, min(self.image) // 2 + 1) if not any(side % s for side in self.image)]

    def grid(self, size: int) -> tuple[int, int]:
        """Patches of that size along height and width."""
        return self.image[0] // size, self.image[1] // size

    def count(self, size: int) -> int:
        """Patches of that size."""
        rows, columns = self.grid(size)
        return rows * columns


@torch.no_grad()
def find(module: nn.Module, data: CalibrationData) -> Patches:
    """How a model cuts its images into patches.

    Args:
        module: In eval mode.
        data: How it is called.

    Raises:
        InputError: No convolution cuts the images into patches.
    """
    seen: list[tuple[str, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda _layer, given, _out, name=name: seen.append((name, given[0])))
        for name, layer in module.named_modules()
        if name and _cuts(layer)
    ]
    try:
        data.run(module)
    finally:
        for handle in handles:
            handle.remove()
    images = [value for value in data.example.values() if isinstance(value, Tensor) and value.dim() == 4]
    found = next(((name, x) for name, x in seen if any(x.shape == image.shape for image in images)), None)
    if found is None:
        raise InputError(
            "no layer of this model cuts its images into patches",
            "that is a convolution whose stride is its window, on the images themselves, as in ViT and DeiT",
        )
    name, x = found
    layer: Any = module.get_submodule(name)
    patches = Patches(name, layer.stride[0], (int(x.shape[2]), int(x.shape[3])), ())
    count = patches.count(patches.size)

    def positions(tensor: Tensor) -> bool:
        if tensor.dim() != 3 or tensor.shape[0] != 1 or tensor.shape[2] != layer.out_channels:
            return False
        return count <= tensor.shape[1] <= count + _MOST_IN_FRONT

    held = (*module.named_parameters(), *module.named_buffers())
    return replace(patches, positions=tuple(name for name, tensor in held if positions(tensor)))


def _cuts(layer: nn.Module) -> bool:
    """Whether the windows of a layer lie side by side."""
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding not in ((0, 0), "valid"):
        return False
    plain = layer.dilation == (1, 1) and layer.stride[0] == layer.stride[1] > 1
    return plain and layer.kernel_size == layer.stride


@torch.no_grad()
def resample(module: nn.Module, patches: Patches, size: int) -> None:
    """Give a model patches of another size, in place.

    Args:
        module: Holds the layers.
        patches: What it has.
        size: One of their ``sizes``.
    """
    old: Any = module.get_submodule(patches.name)
    new = _emptied(old, size)
    new.weight.copy_(resized_weight(old.weight, size))
    if new.bias is not None:
        new.bias.copy_(old.bias)
    grids = patches.grid(patches.size), patches.grid(size)
    values = {name: resized_positions(_tensor(module, name), *grids) for name in patches.positions}
    _put(module, patches, size, new, values)


@contextmanager
def resampled(module: nn.Module, patches: Patches, size: int) -> Iterator[None]:
    """The model with patches of another size, for a while."""
    old = module.get_submodule(patches.name)
    values = {name: _tensor(module, name) for name in patches.positions}
    resample(module, patches, size)
    try:
        yield
    finally:
        _put(module, replace(patches, size=size), patches.size, old, values)


@torch.no_grad()
def check(module: nn.Module, patches: Patches, size: int, data: CalibrationData) -> None:
    """Refuse a model that doesn't work with patches of another size.

    Raises:
        InputError: It fails, or gives something of another shape.
    """
    wanted = [t.shape for t in tensors_in(data.run(module))]
    with resampled(module, patches, size):
        try:
            found = [t.shape for t in tensors_in(data.run(module))]
        except (RuntimeError, ValueError) as error:
            last = str(error).strip().splitlines()[-1]
            raise InputError(f"the model doesn't work with patches of {size} pixels: {last}") from error
    if found != wanted:
        raise InputError(
            f"with patches of {size} pixels the model's output has another shape: it has values for each patch",
            "models with one answer for each image can have larger patches",
        )


def replay(module: nn.Module, facts: PatchesFacts) -> None:
    """Give a freshly built model layers of the shapes that larger patches have.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    for name, fact in facts.layers.items():
        old: Any = layer_of_card(module, name, "embeds patches")
        if not _cuts(old):
            raise InputError(f"layer '{name}' cuts nothing into patches", "check `arch` and `arch_args`")
        patches = Patches(name, old.stride[0], (fact.image[0], fact.image[1]), tuple(fact.positions))
        if fact.size not in patches.sizes:
            raise InputError(f"layer '{name}' has patches of {fact.size} pixels", "the card is damaged")
        fewer, values = patches.count(patches.size) - patches.count(fact.size), {}
        for position in fact.positions:
            like = _tensor(module, position)
            if like is None or like.dim() != 3 or like.shape[1] <= fewer:
                raise InputError(f"the architecture has no positions '{position}'", "check `arch` and `arch_args`")
            values[position] = torch.empty_like(like[:, fewer:])
        _put(module, patches, fact.size, _emptied(old, fact.size), values)


def resized_weight(weight: Tensor, size: int) -> Tensor:
    """Weights of an embedding that see a patch enlarged by bilinear interpolation as they saw the patch.

    Args:
        weight: ``(outputs, channels, a, a)``.
        size: Pixels a side of the larger patches, at least ``a``.

    Returns:
        ``(outputs, channels, size, size)``.
    """
    side = weight.shape[-1]
    pixels = torch.eye(side * side, dtype=torch.float64, device=weight.device).reshape(-1, 1, side, side)
    enlarged = F.interpolate(pixels, size=(size, size), mode="bilinear").flatten(1)
    resized: Tensor = weight.double().flatten(2) @ torch.linalg.pinv(enlarged).T
    return resized.reshape(*weight.shape[:2], size, size).to(weight.dtype)


def resized_positions(positions: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Positions of another grid, interpolated; those in front, of class tokens, stay.

    Args:
        positions: ``(1, in front + rows · columns, width)``.
        before: Rows and columns.
        after: The same of the result.
    """
    front = positions.shape[1] - before[0] * before[1]
    grid = positions[:, front:].float().reshape(1, *before, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=after, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    return torch.cat([positions[:, :front], resized.to(positions.dtype)], dim=1)


def _emptied(old: nn.Conv2d, size: int) -> nn.Conv2d:
    new = nn.Conv2d(old.in_channels, old.out_channels, size, size, bias=old.bias is not None)
    return new.to(old.weight.device, old.weight.dtype).train(old.training)


def _tensor(module: nn.Module, name: str) -> Any:
    """The parameter or buffer of that name; None where there is none."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Tensor) else None


def _put(module: nn.Module, patches: Patches, size: int, new: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put layers and positions in their places; what the modules around say of patches follows."""
    set_module(module, patches.name, new)
    for name, value in values.items():
        holder, _, leaf = name.rpartition(".")
        trained = isinstance(_tensor(module, name), nn.Parameter)
        setattr(module.get_submodule(holder), leaf, nn.Parameter(value.detach()) if trained else value)
    parts = patches.name.split(".")[:-1]
    grids = patches.grid(patches.size), patches.grid(size)
    told = {
        "patch_size": ((patches.size, size), ((patches.size,) * 2, (size,) * 2)),
        "grid_size": (grids,),
        "num_patches": ((patches.count(patches.size), patches.count(size)),),
    }
    for depth in range(len(parts) + 1):
        around = module.get_submodule(".".join(parts[:depth]))
        for attribute, pairs in told.items():
            for before, after in pairs:
                if getattr(around, attribute, None) == before:
                    setattr(around, attribute, after)
