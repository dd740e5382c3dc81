"""Quantized weights in torch: what codes, scales and zero points mean, and how codes are packed into bytes.

A weight of any shape is seen as a matrix: one row for each output (first axis), all else flattened into columns.
Each row is cut into groups; a group has one scale and one zero point. ``weight ≈ (code − zero) · scale``, with a
format that has tables of levels ``level[code] · scale``, and with minima ``code · scale − minimum``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compresskit.ops.packed.format import BITS, TwoLevel
from compresskit.ops.packed.layout import Grid, packed_bytes, planes
from compresskit.quality.decibel import decibels

_BLOCK = 1 << 20
_HALF_MIN, _HALF_MAX = 2.0**-18, 65504.0
"""Scales that float16 holds to 1 % or better; codes are chosen for the rounded scale, so that is close enough."""
_TINY = 1e-35
PARTS = ("codes", "scales", "zeros", "levels", "multiples")
"""Names of the tensors that a packed weight is stored in."""

__all__ = [
    "BITS", "PARTS", "Grid", "Packed", "dequantize", "fits_half", "pack", "packed_bytes", "scales_and_minima", "sqnr",
    "unpack", "whole_numbers",
]  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """A quantized weight in the layout that onnxruntime's MatMulNBits reads.

    Attributes:
        codes: uint8 ``(rows, groups, bytes of a group)``, see :func:`pack`.
        scales: float16, or float32 where float16 can't hold them, ``(rows, groups)``; float32 where the format says so.
            In two levels, float16 ``(rows, super-blocks)``: of the scales, then where there are minima of these.
        zeros: uint8 ``(rows, bytes)``, a row's zero points packed like codes; None when symmetric.
        shape: Shape of the original weight.
        grid: What the codes mean.
        levels: float16, ascending, what codes stand for at scale 1, where the format has them stored: ``(rows, groups,
            codes)``, with size 1 for axes that one table is for; else None.
        multiples: uint8 ``(rows, bytes)``, where scales are stored in two levels the whole numbers of a row's groups,
            packed like codes: of the scales (signed ones from ``−2**(bits−1)`` on), then of the minima; else None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    shape: tuple[int, ...]
    grid: Grid
    levels: Tensor | None = None
    multiples: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """All stored tensors, by their names among :data:`PARTS`."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in found.items() if part is not None}

    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(part.numel() * part.element_size() for part in self.parts().values())

    def rows(self, index: slice | Tensor, shape: tuple[int, ...] | None = None) -> Packed:
        """Some rows alone.

        Args:
            index: Which.
            shape: Of the result, for rows that are several axes of the weight.
        """
        taken: dict[str, Any] = {n: p if n == "levels" and len(p) == 1 else p[index] for n, p in self.parts().items()}
        return replace(self, **taken, shape=shape or (len(taken["codes"]), *self.shape[1:]))

    @classmethod
    def stacked(cls, pieces: Sequence[Packed]) -> Packed:
        """Rows of one weight that were packed apart, one below the other; not for formats with stored levels."""
        first, shape = pieces[0], (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
        parts: dict[str, Any] = {name: torch.cat([piece.parts()[name] for piece in pieces]) for name in first.parts()}
        return replace(first, **parts, shape=shape)  # scales are float32 where those of any piece are

    def holding(self, parts: Mapping[str, Any]) -> Packed:
        """The same with other tensors, given by their names."""
        return replace(self, **parts)

    def to(self, device: str) -> Packed:
        """All tensors on another device; on ``meta`` their shapes are left."""
        return self.holding({name: part.to(device) for name, part in self.parts().items()})


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes to bytes along the last axis: uint8 ``(…, n)`` to uint8 ``(…, packed_bytes(n, bits))``.

    The first code of a byte is in its low bits, so at 4 bit the even column is in the low nibble. Codes of 3 bits are a
    plane of their two low bits followed by a plane of their high bits; 5, 6 and 7 bits are 4 + 1, 4 + 2 and 4 + 2 + 1.
    Each plane is unpacked like any other width.
    """
    if bits == 8:
        return codes
    if len(widths := planes(bits)) > 1:
        shifts = [sum(widths[:i]) for i in range(len(widths))]
        return torch.cat([pack(codes >> s & (1 << w) - 1, w) for s, w in zip(shifts, widths, strict=True)], dim=-1)
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
    if len(planes(bits)) > 1:
        found, shift, start = torch.zeros(*data.shape[:-1], count, dtype=torch.uint8, device=data.device), 0, 0
        for plane in planes(bits):
            end = start + packed_bytes(count, plane)
            found |= unpack(data[..., start:end], plane, count) << shift
            shift, start = shift + plane, end
        return found
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
        error = dequantize(packed.rows(part, tuple(original.shape))).sub_(original)
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
    if grid.two_level is not None:
        scales, minima = scales_and_minima(packed)
        values = codes.float()
        values = values.sub_(grid.middle).mul_(scales) if minima is None else values.mul_(scales).sub_(minima)
        return values.reshape(packed.shape).to(dtype)
    if grid.format.equal_steps:
        points = grid.middle if packed.zeros is None else unpack(packed.zeros, grid.bits, groups).unsqueeze(-1)
        values = codes.float().sub_(points)
    else:
        values = look_up(levels_of(packed), codes)
    values *= packed.scales.float().unsqueeze(-1)
    return values.reshape(rows, groups * size)[:, :columns].reshape(packed.shape).to(dtype)


def scales_and_minima(packed: Packed) -> tuple[Tensor, Tensor | None]:
    """What is stored in two levels, exactly: float32 ``(rows, groups, 1)`` each; no minima where scales are signed."""
    two_level, whole = whole_numbers(packed)
    rows, groups, _ = packed.codes.shape
    whole *= packed.scales.float().repeat_interleave(two_level.groups, 1)
    scales, *minima = whole.reshape(rows, two_level.kinds, groups, 1).unbind(1)
    return scales, minima[0] if minima else None


def whole_numbers(packed: Packed) -> tuple[TwoLevel, Tensor]:
    """How scales are stored in two levels, and the whole numbers of each row: float32 ``(rows, kinds · groups)``.

    Raises:
        ValueError: They are stored in one level.
    """
    two_level, multiples = packed.grid.two_level, packed.multiples
    if two_level is None or multiples is None:
        raise ValueError(f"{packed.grid.dtype} has scales in one level")
    whole = unpack(multiples, two_level.bits, two_level.kinds * packed.codes.shape[1]).float()
    if not two_level.minima:
        whole -= 1 << (two_level.bits - 1)
    return two_level, whole


def levels_of(packed: Packed) -> Tensor:
    """float32 levels as :attr:`Packed.levels` has them, for formats with one table for all weights too."""
    if packed.levels is not None:
        return packed.levels.float()
    return torch.tensor(packed.grid.format.levels, device=packed.codes.device).reshape(1, 1, -1)


def look_up(levels: Tensor, codes: Tensor) -> Tensor:
    """What codes ``(rows, groups, size)`` stand for at scale 1, by levels as :func:`levels_of` gives them."""
    if len(levels) == levels.shape[1] == 1:
        return levels.reshape(-1)[codes.int()]
    return levels.expand(*codes.shape[:2], -1).gather(2, codes.long())
