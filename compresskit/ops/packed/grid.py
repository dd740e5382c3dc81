"""Quantized weights in torch: what codes, scales and zero points mean, and how codes are packed into bytes.

A weight of any shape is seen as a matrix: one row for each output (first axis), all else flattened into columns.
Each row is cut into groups; a group has one scale and one zero point. ``weight ≈ (code − zero) · scale``, or with a
format that has a table of levels ``level[code] · scale``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compresskit.ops.packed.format import BITS
from compresskit.ops.packed.layout import Grid, packed_bytes
from compresskit.quality.decibel import decibels

_BLOCK = 1 << 20
_HALF_MIN, _HALF_MAX = 2.0**-18, 65504.0
"""Scales that float16 holds to 1 % or better; codes are chosen for the rounded scale, so that is close enough."""
_TINY = 1e-35


__all__ = ["BITS", "Grid", "Packed", "dequantize", "fits_half", "pack", "packed_bytes", "sqnr", "unpack"]


@dataclass(frozen=True)
class Packed:
    """A quantized weight in the layout that onnxruntime's MatMulNBits reads.

    Attributes:
        codes: uint8 ``(rows, groups, bytes of a group)``, see :func:`pack`.
        scales: float16, or float32 where float16 can't hold them, ``(rows, groups)``; float32 where the format says so.
        zeros: uint8 ``(rows, bytes)``, a row's zero points packed like codes; None when symmetric.
        shape: Shape of the original weight.
        grid: What the codes mean.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    shape: tuple[int, ...]
    grid: Grid

    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scales, self.zeros) if t is not None)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes to bytes along the last axis: uint8 ``(…, n)`` to uint8 ``(…, packed_bytes(n, bits))``.

    The first code of a byte is in its low bits, so at 4 bit the even column is in the low nibble. Codes of 3 bits are a
    plane of their two low bits followed by a plane of their high bits: each plane is unpacked like any other width.
    """
    if bits == 8:
        return codes
    if bits == 3:
        return torch.cat([pack(codes & 3, 2), pack(codes >> 2, 1)], dim=-1)
    per_byte = 8 // bits
    if short := -codes.shape[-1] % per_byte:
        codes = torch.nn.functional.pad(codes, (0, short))
    lanes = codes.reshape(*codes.shape[:-1], -1, per_byte)
    out: Tensor = lanes[..., 0].clone()
    for lane in range(1, per_byte):
        out |= lanes[..., lane] << (bits * lane)
    return out


def unpack(data: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of :func:`pack`: uint8 ``(…, bytes)`` to uint8 ``(…, count)``."""
    if bits == 8:
        return data[..., :count]
    if bits == 3:
        low = math.ceil(count / 4)
        return unpack(data[..., :low], 2, count) | unpack(data[..., low:], 1, count) << 2
    mask = (1 << bits) - 1
    lanes = torch.stack([(data >> shift) & mask for shift in range(0, 8, bits)], dim=-1)
    return lanes.flatten(-2)[..., :count]


def fits_half(scales: Tensor) -> bool:
    """True where float16 holds these scales; those of groups that are all zero may be anything."""
    low, high = (float(v) for v in torch.where(scales < _TINY, 1.0, scales).aminmax())
    return not (low < _HALF_MIN or high > _HALF_MAX)


def sqnr(weight: Tensor, packed: Packed) -> float:
    """How much louder a weight is than its rounding error, in dB: 6 a bit is usual; at most 200, for no error at all.

    Args:
        weight: The original; read in blocks.
        packed: The result.
    """
    rows = weight.shape[0]
    step = max(1, _BLOCK // math.prod(weight.shape[1:]))
    signal = noise = 0.0
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        original = weight.detach()[part].float()
        zeros = None if packed.zeros is None else packed.zeros[part]
        shape = tuple(original.shape)
        error = dequantize(Packed(packed.codes[part], packed.scales[part], zeros, shape, packed.grid)).sub_(original)
        signal += float(original.square().sum())
        noise += float(error.square_().sum())
    return decibels(signal, noise)


def dequantize(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that the codes stand for, in its original shape.

    Args:
        packed: A quantized weight.
        dtype: dtype of the result; the product is taken in float32.
    """
    grid = packed.grid
    rows = packed.shape[0]
    columns = math.prod(packed.shape[1:])
    groups, size, _ = grid.layout(columns)
    codes = unpack(packed.codes, grid.bits, size)
    if grid.format.levels is None:
        points = grid.middle if packed.zeros is None else unpack(packed.zeros, grid.bits, groups).unsqueeze(-1)
        values = codes.float().sub_(points)
    else:
        values = torch.tensor(grid.format.levels, device=codes.device)[codes.int()]
    values *= packed.scales.float().unsqueeze(-1)
    return values.reshape(rows, groups * size)[:, :columns].reshape(packed.shape).to(dtype)
