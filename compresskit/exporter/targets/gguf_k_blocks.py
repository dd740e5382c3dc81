"""Codes with scales in two levels as llama.cpp's super-blocks (K-quants): the same numbers in another order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compresskit.ops.packed.format import SUPER_BLOCK
from compresskit.ops.packed.grid import Packed, unpack

BLOCK_BYTES = {2: 84, 3: 110, 4: 144, 5: 176, 6: 210}
"""Of a super-block, by the bits of a code."""


def super_blocks(packed: Packed) -> Tensor:
    """The blocks of a weight with scales in two levels: uint8 ``(rows, bytes of a row)``.

    Raises:
        ValueError: Its scales are in one level.
    """
    grid, two_level, multiples = packed.grid, packed.grid.two_level, packed.multiples
    if two_level is None or multiples is None:
        raise ValueError(f"{grid.dtype} has scales in one level")
    rows, groups, _ = packed.codes.shape
    count = groups // two_level.groups
    codes = unpack(packed.codes, grid.bits, two_level.group_size).reshape(rows * count, SUPER_BLOCK)
    whole = unpack(multiples, two_level.bits, two_level.kinds * groups)
    whole = whole.reshape(rows, two_level.kinds, count, two_level.groups).transpose(1, 2).flatten(0, 1)
    floats = (
        packed.scales.reshape(rows, two_level.kinds, count).mT.flatten().view(torch.uint8).reshape(rows * count, -1)
    )
    return _LAYOUTS[grid.bits](codes, whole, floats).reshape(rows, -1)


def _lanes(codes: Tensor, run: int, lanes: int, width: int) -> Tensor:
    """Some bits of each code, a byte holding those that are ``run`` columns apart: ``(n, run · …)``."""
    parts = codes.reshape(len(codes), -1, lanes, run)
    out = parts[:, :, 0].clone()
    for lane in range(1, lanes):
        out |= parts[:, :, lane] << (width * lane)
    return out.flatten(1)


def _six_bits(whole: Tensor) -> Tensor:
    """Scales and minima ``(n, 2, 8)`` of 6 bits as 12 bytes: the last four of each are cut in two."""
    scale, minimum = whole[:, 0], whole[:, 1]
    first = (part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scale, minimum))
    return torch.cat([*first, scale[:, 4:] & 15 | (minimum[:, 4:] & 15) << 4], 1)


def _q2(codes: Tensor, whole: Tensor, floats: Tensor) -> Tensor:
    return torch.cat([whole[:, 0] | whole[:, 1] << 4, _lanes(codes, 32, 4, 2), floats], 1)


def _q3(codes: Tensor, whole: Tensor, floats: Tensor) -> Tensor:
    scale = whole[:, 0]
    scales = [scale[:, :8] & 15 | (scale[:, 8:] & 15) << 4, _lanes(scale >> 4, 4, 4, 2)]
    return torch.cat([_lanes(codes >> 2, 32, 8, 1), _lanes(codes & 3, 32, 4, 2), *scales, floats], 1)


def _q4(codes: Tensor, whole: Tensor, floats: Tensor) -> Tensor:
    return torch.cat([floats, _six_bits(whole), _lanes(codes, 32, 2, 4)], 1)


def _q5(codes: Tensor, whole: Tensor, floats: Tensor) -> Tensor:
    return torch.cat([floats, _six_bits(whole), _lanes(codes >> 4, 32, 8, 1), _lanes(codes & 15, 32, 2, 4)], 1)


def _q6(codes: Tensor, whole: Tensor, floats: Tensor) -> Tensor:
    signed = whole[:, 0] ^ 128  # from an offset of 128 to two's complement
    return torch.cat([_lanes(codes & 15, 64, 2, 4), _lanes(codes >> 4, 32, 4, 2), signed, floats], 1)


_LAYOUTS: dict[int, Callable[[Tensor, Tensor, Tensor], Tensor]] = {2: _q2, 3: _q3, 4: _q4, 5: _q5, 6: _q6}
