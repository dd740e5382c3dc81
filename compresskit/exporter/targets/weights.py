"""A module's weights as targets want them: by their names, each once, as codes where they are codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.ops.packed.grid import Packed
from compresskit.ops.packed.modules import PackedLayer, PackedLinear, same_tensor
from compresskit.ops.quantize.opened import opened

Weight = Tensor | Packed


def weights_of(module: nn.Module, target: str) -> dict[str, Weight]:
    """All weights by name, tied ones once, under the first of their names; nothing is copied.

    Args:
        module: A transformers model, its layers packed or not.
        target: For the errors.

    Raises:
        InputError: A layer computes more than its weight and bias say.
    """
    found: dict[str, Weight] = {}
    known: set[Any] = set()
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, PackedLinear) and (layer.input_scale is not None or layer.repair_in is not None):
            what = "a scale for its inputs" if layer.input_scale is not None else "a low-rank repair"
            raise InputError(f"{target} can't carry {name}: it has {what} beside its codes")
        if isinstance(layer, PackedLayer):
            _add(found, known, f"{name}.weight", layer.packed, same_tensor(layer.codes))
        for leaf, parameter in layer.named_parameters(recurse=False):
            _add(found, known, f"{name}.{leaf}", parameter.detach(), same_tensor(parameter))
    return found


def _add(found: dict[str, Weight], known: set[Any], name: str, value: Weight, key: Any) -> None:
    if key not in known:
        known.add(key)
        found[name] = value


def check_shapes(module: Any, found: Mapping[str, Weight], target: str) -> nn.Module:
    """Refuse a module whose layers aren't those of its config, as after pruning or factorizing.

    Returns:
        The module that its config builds, on the meta device.

    Raises:
        InputError: Naming the first layer that differs.
    """
    with torch.device("meta"):
        plain: nn.Module = type(module)(module.config)
    expected = _shapes(plain)
    with opened(plain):
        packed = _shapes(plain)
    for name, value in found.items():
        if (packed if isinstance(value, Packed) else expected).get(name) != tuple(value.shape):
            raise InputError(
                f"{target} can't carry {name}: "
                + (
                    "the architecture has no such layer"
                    if name not in expected | packed
                    else "its shape isn't that of config.json"
                )
            )
    return plain


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.named_parameters(remove_duplicate=False)}


def take_rows(weight: Weight, index: Tensor) -> Weight:
    """Some rows of a weight, in another order; codes stay codes."""
    if isinstance(weight, Tensor):
        return weight[index]
    return weight.rows(index)
