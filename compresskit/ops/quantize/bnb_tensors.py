"""Tensors that lie in bitsandbytes' format, as codes and scales."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from compresskit.checkpoint.tensors import Tensors
from compresskit.ops.packed.grid import Packed
from compresskit.ops.quantize.bnb import names, read_back

_PARTS = ("codes", "scales")


class BnbTensors(Tensors):
    """The tensors of a file, some layers' codes and scales read out of what bitsandbytes stores.

    Args:
        tensors: The stored tensors.
        layers: Layer name to its packed weight; only shapes, dtypes and grid are used.
    """

    def __init__(self, tensors: Tensors, layers: dict[str, Packed]) -> None:
        self._tensors, self._layers = tensors, layers
        self._hidden = {f"{layer}.{name}" for layer, packed in layers.items() for name in names(packed.grid)}
        self.source, self.metadata, self.ties = tensors.source, tensors.metadata, {}
        self._held: tuple[str, Packed] | None = None

    def names(self) -> list[str]:
        """Stored names, each layer's own tensors replaced by its codes and scales."""
        made = [f"{layer}.{part}" for layer in self._layers for part in _PARTS]
        return [*(n for n in self._tensors.names() if n not in self._hidden), *made]

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor."""
        part = self._part(name)
        return tuple(part.shape) if part is not None else self._tensors.shape(name)

    def dtype_name(self, name: str) -> str:
        """torch's name of a tensor's dtype."""
        part = self._part(name)
        return str(part.dtype).removeprefix("torch.") if part is not None else self._tensors.dtype_name(name)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype."""
        found: torch.dtype = getattr(torch, self.dtype_name(name))
        return found

    def get(self, name: str) -> Tensor:
        """A stored tensor, or codes or scales converted now."""
        if self._part(name) is None:
            return self._tensors.get(name)
        layer, _, part = name.rpartition(".")
        if self._held is None or self._held[0] != layer:
            empty = self._layers[layer]
            stored = {n: partial(self._tensors.get, f"{layer}.{n}") for n in names(empty.grid)}
            self._held = (layer, read_back(stored, empty))
        found: Tensor = getattr(self._held[1], part)
        return found

    def _part(self, name: str) -> Tensor | None:
        layer, _, part = name.rpartition(".")
        if part not in _PARTS or layer not in self._layers:
            return None
        found: Tensor = getattr(self._layers[layer], part)
        return found
