"""Quantized tensors as plain weights, for layers that have no packed form in an architecture."""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.checkpoint.tensors import Tensors
from compresskit.ops.packed.grid import PARTS, Packed, dequantize


class Unpacked(Tensors):
    """The tensors of a quantized file with some layers' weights dequantized when asked for.

    Args:
        tensors: The stored tensors.
        layers: Layer name to its packed weight; only shapes and grid are used.
    """

    def __init__(self, tensors: Tensors, layers: dict[str, Packed]) -> None:
        self._tensors = tensors
        self._layers = {f"{name}.weight": packed for name, packed in layers.items()}
        self.source, self.metadata, self.ties = tensors.source, tensors.metadata, tensors.ties

    def names(self) -> list[str]:
        """Stored names, each unpacked layer's parts replaced by its weight."""
        hidden = {f"{name.removesuffix('weight')}{part}" for name in self._layers for part in PARTS}
        return [*(n for n in self._tensors.names() if n not in hidden), *self._layers]

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor."""
        return self._layers[name].shape if name in self._layers else self._tensors.shape(name)

    def dtype_name(self, name: str) -> str:
        """torch's name of a tensor's dtype."""
        return "float32" if name in self._layers else self._tensors.dtype_name(name)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype."""
        found: torch.dtype = getattr(torch, self.dtype_name(name))
        return found

    def get(self, name: str) -> Tensor:
        """A stored tensor, or a weight dequantized now."""
        if name not in self._layers:
            return self._tensors.get(name)
        layer, packed = name.removesuffix("weight"), self._layers[name]
        return dequantize(packed.holding({part: self._tensors.get(layer + part) for part in packed.parts()}))
