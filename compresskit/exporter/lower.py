"""A copy of a module in which packed layers emit placeholder operators that carry their codes as they are stored.

The copy shares every tensor with the original, which is left untouched. ``expand.py`` turns the placeholders into
the operators that a runtime knows; nothing is rounded again on the way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.exporter.recurrent import recurrent_twin
from compresskit.ops.packed.experts import unrouted
from compresskit.ops.packed.grid import PARTS, Grid
from compresskit.ops.packed.modules import PackedConv, PackedEmbedding, PackedExperts, PackedLayer, PackedLinear

DOMAIN = "compresskit"
MIN_BLOCK = 16
# Blocks that a wider group is cut into. Activations are rounded by block too: at 8 bit, where that is the larger error,
# 32 halves it (MiniLM: .033 against .069) for 7 % of the speed; at 4 bit 128 is up to 2.6 times as fast (32 rows).
MAX_BLOCK = {2: 128, 3: 128, 4: 128, 8: 32}
T = TypeVar("T", bound=nn.Module)


def lowered(module: nn.Module) -> nn.Module:
    """A structural copy, in eval mode, whose packed and recurrent layers emit operators when it is exported.

    Args:
        module: Any module; it, its flags and its buffers don't change.

    Raises:
        InputError: The module holds something that can't be copied.
    """
    memo: dict[int, Any] = {}
    for layer in module.modules():
        memo.update((id(t), t) for t in _tensors(layer))
        if twin := _twin(layer):
            memo[id(layer)] = twin
    try:
        with unrouted(module):
            return copy.deepcopy(module, memo).eval()
    except (TypeError, RuntimeError, RecursionError) as error:
        raise InputError(
            f"the model can't be copied for the export: {error}",
            "keep locks, open files and generators out of the module's attributes",
        ) from error


def _tensors(layer: nn.Module) -> Iterator[Tensor]:
    """Every tensor that hangs directly on a layer, registered or not."""
    for holder in (layer._parameters, layer._buffers, vars(layer)):
        yield from (v for v in holder.values() if isinstance(v, Tensor))


def _twin(layer: nn.Module) -> nn.Module | None:
    for packed, twin in _TWINS.items():
        if isinstance(layer, packed):
            return _retyped(layer, twin)
    return recurrent_twin(layer)


def _retyped(layer: nn.Module, kind: type[T]) -> T:
    """The layer as an object of another class, with its own tables and the same tensors."""
    twin = kind.__new__(kind)
    twin.__dict__.update(layer.__dict__)
    for table in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[table] = dict(layer.__dict__[table])
    return twin


def block_of(grid: Grid, columns: int) -> int | None:
    """The block size under which a matrix product with packed codes exists; None when there is none.

    Blocks are powers of two of at least 16. A wider group is cut into such blocks, which repeat its scale; a row with
    a single scale may be padded at its end where it is 4 or 8 bits. Tables of levels have no such product.
    """
    if not grid.format.equal_steps:
        return None
    size, padded = grid.group_size, grid.bits in (4, 8)
    if size >= MIN_BLOCK and size & (size - 1) == 0 and (padded or columns % size == 0):
        return size
    single = not size or size >= columns
    size = columns if single else size
    block = min(size & -size, MAX_BLOCK[grid.bits])
    if block >= MIN_BLOCK and columns % size == 0:
        return block
    return MIN_BLOCK if single and padded else None


def attributes_of(layer: PackedLayer) -> dict[str, Any]:
    """What a placeholder of a layer says of its codes."""
    shape = layer.packed.shape
    columns = math.prod(shape[1:])
    return {
        "bits": layer.grid.bits,
        "format": layer.grid.format.name,
        "group": layer.grid.group_size or columns,
        "block": block_of(layer.grid, columns) or 0,
        "shape": list(shape),
    }


def _emit(op: str, layer: PackedLayer, extra: list[Tensor | None], dtype: torch.dtype, shape: Any) -> Tensor:
    inputs = [*(getattr(layer, part) for part in PARTS), *extra]
    name = f"{DOMAIN}::{op}"
    return torch.onnx.ops.symbolic(name, inputs, attributes_of(layer), dtype=dtype, shape=shape, version=1)


def _floats(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """A cast that the exporter doesn't compute: the file keeps what is stored."""
    return torch.onnx.ops.symbolic(f"{DOMAIN}::Floats", [stored], dtype=dtype, shape=stored.shape, version=1)


class _Lowered(PackedLayer):
    @property
    def weight(self) -> Tensor:
        """The dequantized weight, for code that reads it directly."""
        return _emit("Weight", self, [], torch.float32, self.packed.shape).to(self.dtype)


class LoweredLinear(_Lowered, PackedLinear):
    """Emits ``Linear``, or a matrix product with ``Weight`` where no block size fits."""

    def forward(self, x: Tensor) -> Tensor:
        """``(…, in) -> (…, out)``."""
        if self.input_scale is not None:
            x = x * self.input_scale.to(x.dtype)
        if self.repair_in is None or self.repair_out is None:
            return self._times(x, self.bias)
        small = F.linear(x, _floats(self.repair_in, x.dtype))
        return self._times(x, self.bias) + F.linear(small, _floats(self.repair_out, x.dtype))

    def product(self, x: Tensor) -> Tensor:
        """The product alone."""
        return self._times(x, None)

    def _times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not block_of(self.grid, self.in_features):
            return F.linear(x, self.weight, bias)
        return _emit("Linear", self, [x, bias], x.dtype, (*x.shape[:-1], self.out_features))


class LoweredEmbedding(_Lowered, PackedEmbedding):
    """Emits ``Embedding``."""

    def rows(self, ids: Tensor) -> Tensor:
        """The rows as they are stored."""
        return _emit("Embedding", self, [ids], torch.float32, (*ids.shape, self.embedding_dim)).to(self.dtype)


class LoweredConv(_Lowered, PackedConv):
    """Its ``forward`` is the packed layer's; the weight it reads emits ``Weight``."""


class LoweredExperts(_Lowered, PackedExperts):
    """All experts are unpacked by ``Weight``, whichever are asked for."""

    def __getitem__(self, index: Any) -> Tensor:
        """Those experts."""
        return self.tensor[index]


_TWINS: dict[type[PackedLayer], type[_Lowered]] = {
    PackedExperts: LoweredExperts,
    PackedLinear: LoweredLinear,
    PackedEmbedding: LoweredEmbedding,
    PackedConv: LoweredConv,
}
