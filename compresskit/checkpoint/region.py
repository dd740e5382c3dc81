"""Where one tensor lies in a file: known from the headers, before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

ITEM_SIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes of an element, by torch's name of the dtype."""

MAX_DIMS = 64
SIZES = range(1 << 63)
"""What a size, a stride or an offset can be."""


class Aside(str):
    """In the place of what was saved beside tensors and could be some, in words: a list of tensors, an array."""

    __slots__ = ()


@dataclass(frozen=True)
class Region:
    """A view of one storage in a file.

    Attributes:
        dtype: torch's name of it, without ``torch.``.
        shape: Sizes.
        strides: In elements.
        start: Where the storage begins in the file, in bytes.
        size: How long the storage is, in bytes.
        offset: The view's first element, counted from the storage's begin, in elements.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    size: int
    offset: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when dense."""
        return self.numel * ITEM_SIZE[self.dtype]

    @property
    def contiguous(self) -> bool:
        """True when the elements lie in row-major order without gaps."""
        return all(
            size == 1 or have == want
            for size, have, want in zip(self.shape, self.strides, dense_strides(self.shape), strict=True)
        )

    def fault(self) -> str | None:
        """None, or why the view doesn't fit its storage: checked before anything of its size is allocated."""
        if max(len(self.shape), len(self.strides)) > MAX_DIMS:
            return f"it has more than {MAX_DIMS} axes"
        if any(n not in SIZES for n in (*self.shape, *self.strides, self.offset)):
            return "its shape, strides or offset make no sense: sizes from 0 to 2^63 were expected"
        if len(self.shape) != len(self.strides):
            return f"its shape {self.shape}, strides {self.strides} and offset {self.offset} make no sense"
        if self.numel == 0:
            return None
        item = ITEM_SIZE[self.dtype]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if (last + 1) * item > self.size or self.nbytes > self.size:
            need = max((last + 1) * item, self.nbytes)
            return f"its shape {self.shape} claims {need} bytes, its storage holds {self.size}"
        return None


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides, in elements."""
    out, step = [], 1
    for size in reversed(shape):
        out.append(step)
        step *= max(size, 1)
    return tuple(reversed(out))
