"""Which layers go into bitsandbytes' formats, and why the others stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from compresskit.ops.packed.grid import Grid
from compresskit.ops.packed.modules import same_tensor
from compresskit.ops.quantize.bnb import obstacle
from compresskit.ops.quantize.select import Selection


@dataclass(frozen=True)
class BnbSelection(Selection):
    """A selection of linear layers, all on one grid.

    Attributes:
        only: The grid.
        kept: What :func:`kept` found.
    """

    only: Grid = field(default_factory=lambda: Grid(8, 0, symmetric=True))
    kept: Mapping[str, str] = field(default_factory=dict)

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """The same for every layer."""
        return self.only

    def reason_against(self, name: str, shape: tuple[int, ...], itemsize: int) -> str | None:
        """None when the layer is to be quantized, else why not."""
        return self.kept.get(name) or super().reason_against(name, shape, itemsize)


def kept(module: nn.Module, grid: Grid, *, transformers: bool) -> dict[str, str]:
    """Layers that stay as they are whatever the user asks for, with the reason.

    Args:
        module: The original.
        grid: What the others get.
        transformers: The result is to be read by transformers, which only knows what the library itself can hold.
    """
    owners: dict[tuple[Any, ...], list[str]] = {}
    layers = {n: m for n, m in module.named_modules(remove_duplicate=False) if "weight" in m._parameters}
    for name, layer in layers.items():
        if layer._parameters["weight"] is not None:
            owners.setdefault(same_tensor(layer.get_parameter("weight")), []).append(name)
    wide = list(getattr(module, "_keep_in_fp32_modules", None) or []) if transformers else []
    found: dict[str, str] = {}
    for names in owners.values():
        for name in names:
            reason = _alone(layers[name], next((other for other in names if other != name), None))
            if reason is None and transformers:
                reason = _unreadable(name, tuple(layers[name].get_parameter("weight").shape), grid, wide)
            if reason:
                found[name] = reason
    return found


def _alone(layer: nn.Module, twin: str | None) -> str | None:
    """Why the library can't have a layer that shares its weight with ``twin``, whoever reads the result."""
    if type(layer) is not nn.Linear:
        return "bitsandbytes has linear layers only"
    return None if twin is None else f"shares its weight with '{twin}'"


def _unreadable(name: str, shape: tuple[int, ...], grid: Grid, wide: Sequence[str]) -> str | None:
    """Why transformers can't read a layer from the library's format; ``wide`` is what it keeps in float32."""
    if any(re.search(rf"(?:^|\.){re.escape(w)}(?:\.|$)", name) for w in wide):
        return "transformers keeps it in float32"
    return obstacle(shape, grid)
