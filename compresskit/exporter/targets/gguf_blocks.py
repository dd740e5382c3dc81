"""Codes as llama.cpp's blocks: the same numbers in another order, never rounded again."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compresskit.exporter.targets.gguf_k_blocks import BLOCK_BYTES as SUPER_BLOCK_BYTES
from compresskit.exporter.targets.gguf_k_blocks import super_blocks
from compresskit.ops.packed.format import SUPER_BLOCK
from compresskit.ops.packed.grid import Packed, unpack
from compresskit.ops.packed.layout import Grid

BLOCK = 32
_ROWS = 1 << 22
"""Elements that are unpacked at once."""
_K_QUANTS = {f"Q{bits}_K": nbytes for bits, nbytes in SUPER_BLOCK_BYTES.items()}
_BLOCK_BYTES = {
    "Q4_0": 18, "Q4_1": 20, "Q8_0": 34, "F32": 4 * BLOCK, "F16": 2 * BLOCK, "BF16": 2 * BLOCK, **_K_QUANTS
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a weight lies in the file.

    Attributes:
        kind: The name of its type in ``gguf.GGMLQuantizationType``.
        shape: Of the weight.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Of one row of the last axis."""
        return self.shape[-1] * _BLOCK_BYTES[self.kind] // (SUPER_BLOCK if self.kind in _K_QUANTS else BLOCK)

    @property
    def nbytes(self) -> int:
        """Of the whole weight."""
        return math.prod(self.shape[:-1]) * self.row_bytes


def reason_against(grid: Grid) -> str | None:
    """Why codes on a grid have no place in a GGUF block; None when they have."""
    if grid.two_level is not None:
        return None
    if not grid.format.equal_steps:
        return f"{grid.dtype} is no type of GGUF; quantize to 4 or 8 bits with equal steps"
    if grid.group_size % BLOCK:
        return f"groups of {grid.group_size}, a block has {BLOCK}; give `group_size` 32 or a multiple"
    if grid.bits == 8 and not grid.symmetric:
        return "8 bits with zero points have no type (Q8_0 has none); quantize with `symmetric`"
    return None


def packed_kind(packed: Packed) -> str | None:
    """The type of a packed weight: Q4_0, Q4_1, Q8_0 or a K-quant; None where its rows or scales need floats."""
    if packed.grid.two_level is not None:
        return packed.grid.dtype.upper()
    if packed.shape[-1] % BLOCK or packed.scales.dtype != torch.float16:
        return None
    if packed.grid.bits == 8:
        return "Q8_0"
    return "Q4_0" if packed.zeros is None else "Q4_1"


def float_kind(tensor: Tensor) -> str:
    """The smallest of F16, BF16 and F32 that holds all values exactly; vectors are F32, as llama.cpp wants them."""
    if tensor.dim() < 2:
        return "F32"
    flat = tensor.reshape(-1)
    fits = {torch.float16: "F16", torch.bfloat16: "BF16"}
    for start in range(0, flat.numel(), _ROWS):
        part = flat[start : start + _ROWS]
        fits = {dtype: name for dtype, name in fits.items() if torch.equal(part.to(dtype).to(part.dtype), part)}
        if not fits:
            return "F32"
    return next(iter(fits.values()))


def float_bytes(tensor: Tensor, kind: str) -> np.ndarray:
    """A tensor as bytes of its type."""
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[kind]
    found: np.ndarray = tensor.to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
    return found


def block_bytes(packed: Packed, kind: str) -> np.ndarray:
    """A packed weight as uint8 ``(rows, bytes of a row)``, some rows at a time.

    Codes of 2 and 3 bits lie in blocks of 4: the distance to the code that stands for 0 stays the same.
    """
    rows, columns = packed.shape[0], math.prod(packed.shape[1:])
    out = np.empty((rows, Layout(kind, (rows, columns)).row_bytes), np.uint8)
    step = max(1, _ROWS // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        if kind in _K_QUANTS:
            out[part] = super_blocks(packed.rows(part)).numpy()
        else:
            out[part] = _blocks(packed, kind, part, columns)
    return out


def _blocks(packed: Packed, kind: str, part: slice, columns: int) -> np.ndarray:
    grid = packed.grid
    groups, size, _ = grid.layout(columns)
    codes = unpack(packed.codes[part], grid.bits, size).flatten(1)[:, :columns]
    each = torch.arange(0, columns, BLOCK) // size
    scales = packed.scales[part][:, each].to(torch.float16)
    heads = [scales]
    if packed.zeros is not None:
        points = unpack(packed.zeros[part], grid.bits, groups)[:, each]
        heads.append((-points.float() * scales.float()).to(torch.float16))
    blocks = codes.reshape(len(codes), -1, BLOCK)
    if kind == "Q8_0":
        body = (blocks.to(torch.int16) - grid.middle).to(torch.int8).view(torch.uint8)
    else:
        if kind == "Q4_0":
            blocks = blocks + (8 - grid.middle)
        body = blocks[..., : BLOCK // 2] | blocks[..., BLOCK // 2 :] << 4
    parts = [head.unsqueeze(-1).contiguous().view(torch.uint8) for head in heads]
    found: np.ndarray = torch.cat([*parts, body], dim=-1).flatten(1).numpy()
    return found
