"""How bitsandbytes stores a weight of each format that it has: its tensors, and its modules.

Dettmers et al., *QLoRA* (arXiv:2305.14314) is the 4-bit format, *LLM.int8()* (arXiv:2208.07339) the 8-bit one. Left
out: the second quantization of the scales, and FP4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from compresskit.ops.packed.format import LINEAR, Format
from compresskit.ops.packed.grid import Grid, Packed
from compresskit.ops.packed.modules import PackedLinear
from compresskit.ops.packed.nf4 import NF4

BLOCKS = (32, 64, 128, 256, 512, 1024)
"""Group sizes that the library knows."""
CPU_ROWS = 32
"""Its CPU kernel takes multiples of so many outputs."""
THRESHOLD = 6.0
"""Activations beyond this are multiplied in floating point by ``Linear8bitLt``; the paper's figure."""
_STATE = "quant_state.bitsandbytes__nf4"

Read = Mapping[str, Callable[[], Tensor]]


class Layout(Protocol):
    """How one format is stored."""

    names: tuple[str, ...]
    """What the tensors are called behind the layer's name."""
    dtype: torch.dtype
    """Of the stored codes."""

    def obstacle(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        """Why the library can't hold a linear layer's weight of this shape and grid; None when it can."""
        ...

    def stored(self, packed: Packed) -> dict[str, Tensor]:
        """The tensors, by name."""
        ...

    def codes(self, weight: Tensor) -> Tensor:
        """Packed codes of the stored ``weight``, flat."""
        ...

    def scales(self, tensors: Read) -> Tensor:
        """float32 scales, flat."""
        ...

    def twin(self, library: Any, layer: PackedLinear) -> Any:
        """The library's module, without its bias."""
        ...


class _NormalFloat:
    names: tuple[str, ...] = ("weight", "weight.absmax", "weight.quant_map", f"weight.{_STATE}")
    dtype = torch.uint8

    def obstacle(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        columns = math.prod(shape[1:])
        if grid.group_size not in BLOCKS or columns % grid.group_size:
            return f"{columns} columns are not a multiple of a group that bitsandbytes knows"
        if shape[0] % CPU_ROWS:
            return f"{shape[0]} outputs: the CPU kernel of bitsandbytes wants a multiple of {CPU_ROWS}"
        return None

    def stored(self, packed: Packed) -> dict[str, Tensor]:
        state = {
            "quant_type": "nf4", "blocksize": packed.grid.group_size, "dtype": "float32", "shape": list(packed.shape)
        }  # fmt: skip
        return {
            "weight": swapped(packed.codes).reshape(-1, 1),
            "weight.absmax": packed.scales.float().reshape(-1),
            "weight.quant_map": torch.tensor(NF4.levels),
            f"weight.{_STATE}": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }

    def codes(self, weight: Tensor) -> Tensor:
        return swapped(weight)

    def scales(self, tensors: Read) -> Tensor:
        return tensors["weight.absmax"]()

    def twin(self, library: Any, layer: PackedLinear) -> Any:
        tensors = self.stored(layer.packed)
        with torch.device("meta"):
            twin = library.nn.Linear4bit(*_size(layer), compress_statistics=False, quant_type="nf4")
        state = {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"}
        device = tensors["weight"].device
        twin.weight = library.nn.Params4bit.from_prequantized(tensors["weight"], state, device=device, module=twin)
        return twin


class _Rows:
    names: tuple[str, ...] = ("weight", "SCB", "weight_format")
    dtype = torch.int8

    def obstacle(self, shape: tuple[int, ...], grid: Grid) -> str | None:
        return None if grid == row_grid() else "bitsandbytes has no such grid"

    def stored(self, packed: Packed) -> dict[str, Tensor]:
        scales = packed.scales.float().reshape(-1) * 127
        codes = packed.codes.reshape(packed.shape).to(torch.int16).sub_(128).to(torch.int8)
        return {"weight": codes, "SCB": scales, "weight_format": torch.zeros((), dtype=torch.uint8)}

    def codes(self, weight: Tensor) -> Tensor:
        return weight.to(torch.int16).add_(128).to(torch.uint8)

    def scales(self, tensors: Read) -> Tensor:
        return tensors["SCB"]() / 127

    def twin(self, library: Any, layer: PackedLinear) -> Any:
        tensors = self.stored(layer.packed)
        with torch.device("meta"):
            twin = library.nn.Linear8bitLt(*_size(layer), has_fp16_weights=False, threshold=THRESHOLD)
        codes = tensors["weight"]
        twin.weight = library.nn.Int8Params(
            codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=tensors["SCB"]
        )
        return twin


LAYOUTS: dict[Format, Layout] = {LINEAR: _Rows(), NF4: _NormalFloat()}
"""Formats that the library has, some of their grids at least."""


def row_grid() -> Grid:
    """8 bit, symmetric, a scale for each row: the library's int8."""
    return Grid(8, 0, symmetric=True)


def swapped(codes: Tensor) -> Tensor:
    """The two 4-bit codes of each byte in the other order: bitsandbytes has the first one in the high nibble."""
    return ((codes << 4) | (codes >> 4)).contiguous()


def _size(layer: PackedLinear) -> tuple[int, int, bool]:
    return layer.in_features, layer.out_features, layer.bias is not None
