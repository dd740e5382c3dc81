"""Which values a weight may take and how its codes lie in bytes: what can be said, and read, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compresskit.ops.packed.format import LEVEL_BYTES, LINEAR, SUPER_BLOCK, Format, TwoLevel

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Grid:
    """Which values a weight may take.

    Attributes:
        bits: Bits of a code: 2, 3, 4 or 8; others where the format has them.
        group_size: Columns that share a scale; 0 means the whole row (per channel).
        symmetric: The zero point is fixed at ``2**(bits-1)`` and not stored; formats with a table or with minima have
            none to store.
        format: What codes stand for.
    """

    bits: int
    group_size: int = 32
    symmetric: bool = False
    format: Format = LINEAR

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.bits not in self.format.bits or not (self.symmetric or self.format.equal_steps):
            raise ValueError(f"there is no such grid: {self}")
        if self.two_level is not None and self.group_size != self.two_level.group_size:
            raise ValueError(f"{self.dtype} has groups of {self.two_level.group_size} columns")

    @property
    def two_level(self) -> TwoLevel | None:
        """How scales are stored in two levels; None where each group has a float."""
        return self.format.two_level_of(self.bits)

    @property
    def dtype(self) -> str:
        """What reports call the dtype of such codes."""
        return self.format.dtype(self.bits)

    @property
    def largest(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The code that stands for 0 in a grid without stored zero points or levels."""
        zero = self.format.zero(self.bits)
        if zero is None:
            raise ValueError(f"what stands for 0 in {self.format.name} is stored")
        return zero

    def check_steps(self) -> None:
        """For algorithms that reckon with equal steps.

        Raises:
            ValueError: The format has a table of levels.
        """
        if not self.format.equal_steps:
            raise ValueError(f"{self.dtype} has no equal steps to round to")

    def layout(self, columns: int) -> tuple[int, int, int]:
        """(groups in a row, columns in a group, bytes of a group). The last group of a row may be partly padding."""
        size = self.group_size or columns
        return math.ceil(columns / size), size, packed_bytes(size, self.bits)

    def zero_bytes(self, groups: int) -> int:
        """Bytes of a row's zero points."""
        return 0 if self.symmetric else packed_bytes(groups, self.bits)

    def part_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shape of each stored tensor of a packed weight, by its name.

        Raises:
            ValueError: The weight has no place in the format.
        """
        if not self.format.holds(shape, self.bits):
            raise ValueError(f"{self.dtype} has super-blocks of {SUPER_BLOCK} columns, the weight is {shape}")
        rows, (groups, _, nbytes) = shape[0], self.layout(math.prod(shape[1:]))
        two_level, levels = self.two_level, self.format.stored_levels(rows, groups, self.bits)
        scales = groups if two_level is None else two_level.kinds * (groups // two_level.groups)
        found: dict[str, tuple[int, ...]] = {"codes": (rows, groups, nbytes), "scales": (rows, scales)}
        if not self.symmetric:
            found["zeros"] = rows, self.zero_bytes(groups)
        if levels is not None:
            found["levels"] = levels
        if two_level is not None:
            found["multiples"] = rows, packed_bytes(two_level.kinds * groups, two_level.bits)
        return found

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a packed weight: codes, scales in the dtype they usually have, zero points, and levels."""
        itemsize = {"scales": self.format.scale_bytes, "levels": LEVEL_BYTES}
        return sum(math.prod(part) * itemsize.get(name, 1) for name, part in self.part_shapes(shape).items())


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that ``count`` codes take, see :func:`compresskit.ops.packed.grid.pack`."""
    return sum(math.ceil(count * width / 8) for width in planes(bits))


def planes(bits: int) -> tuple[int, ...]:
    """Widths of the planes that a code is stored in, its low bits first: a byte holds whole codes of each plane."""
    return tuple(width for width in (8, 4, 2, 1) if bits & width)


def plane_bytes(width: int, bits: int) -> tuple[int, ...]:
    """Bytes of each plane of codes that are packed into ``width`` bytes."""
    count = next(n for n in range(width * 8 // bits, -1, -1) if packed_bytes(n, bits) == width)
    return tuple(math.ceil(count * plane / 8) for plane in planes(bits))


def unpack_array(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """:func:`compresskit.ops.packed.grid.unpack` of an array: uint8 ``(…, bytes)`` to uint8 ``(…, count)``."""
    if bits == 8:
        whole: np.ndarray = data[..., :count]
        return whole
    if len(planes(bits)) > 1:
        found, shift, start = np.zeros((*data.shape[:-1], count), np.uint8), 0, 0
        for plane in planes(bits):
            end = start + packed_bytes(count, plane)
            found |= unpack_array(data[..., start:end], plane, count) << shift
            shift, start = shift + plane, end
        return found
    mask = (1 << bits) - 1
    lanes: np.ndarray = np.stack([(data >> shift) & mask for shift in range(0, 8, bits)], axis=-1)
    flat: np.ndarray = lanes.reshape(*data.shape[:-1], -1)
    return flat[..., :count]


def count_points(codes: np.ndarray, points: np.ndarray | int, bits: int, size: int, columns: int) -> int:
    """How many codes are their group's zero point: the weights that are exactly zero. Some rows at a time.

    Args:
        codes: uint8 ``(rows, groups, bytes)``.
        points: uint8 ``(rows, bytes)``, packed like codes; or the one code that stands for zero everywhere.
        bits: Of a code.
        size: Columns of a group.
        columns: Of a row; what the last group has beyond them is padding.
    """
    rows, groups, _ = codes.shape
    total = 0
    step = max(1, _BLOCK // max(columns, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        found = unpack_array(codes[part], bits, size)
        here = points if isinstance(points, int) else unpack_array(points[part], bits, groups)[..., np.newaxis]
        total += int(np.count_nonzero((found == here).reshape(len(found), -1)[:, :columns]))
    return total
