"""What every source needs: slices of a walk, targets of one form, and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from compresskit.errors import InputError, UsageError

BLOCK = 1 << 24
"""Bytes handled at once when a whole array is checked or hashed."""


def spans(total: int, size: int, limit: int | None) -> Iterator[slice]:
    """Slices of ``size`` that cover the first ``limit`` of ``total`` samples.

    Raises:
        UsageError: A size or limit below 1.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise UsageError(f"a batch size and a limit are at least 1, found {size} and {limit}")
    end = total if limit is None else min(total, limit)
    for start in range(0, end, size):
        yield slice(start, min(start + size, end))


def fair_order(labels: np.ndarray | None) -> np.ndarray | None:
    """A shuffled order, int64, for samples that lie class by class: the first of them would be of one class only.

    Args:
        labels: Of all samples, in order; None where there are none.

    Returns:
        None where the order is fair as it is: neighbours differ about as often as in a random order.
    """
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) < 2:
        return None
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    if np.mean(labels[1:] != labels[:-1]) >= 0.5 * (1 - np.square(shares).sum()):
        return None
    return np.random.default_rng(0).permutation(len(labels))


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in pieces along its first axis, each of about :data:`BLOCK` bytes."""
    rows = max(1, BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def as_targets(name: str, where: str, array: np.ndarray) -> np.ndarray:
    """Labels as ``int64``, scores as ``float64``, a column of shape ``(n, 1)`` flattened.

    Raises:
        InputError: Not numbers, or NaN or Inf among them.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind in "bui":
        return array.astype(np.int64)
    if array.dtype.kind != "f":
        raise InputError(f"{where}: '{name}' should hold numbers, found dtype {array.dtype}")
    if not np.isfinite(array).all():
        raise InputError(f"{where}: '{name}' holds NaN or Inf", "remove those samples")
    return array.astype(np.float64)


class Fingerprint:
    """SHA-256 over arrays, texts and options; the same samples prepared the same way give the same value."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._hash = hashlib.sha256(json.dumps(options, sort_keys=True).encode())

    def array(self, name: str, array: np.ndarray) -> None:
        """Add an array: its name, dtype, sample shape and values, in C order whatever its layout."""
        kind = array.dtype.newbyteorder("<")
        self._hash.update(f"\0{name}\0{kind.str}\0{array.shape[1:]}\0".encode())
        for block in blocks(array):
            self._hash.update(np.ascontiguousarray(block, dtype=kind).data.cast("B") if block.size else b"")

    def data(self, data: bytes) -> None:
        """Add bytes, with their length so that a boundary can't move unseen."""
        self._hash.update(f"\0{len(data)}\0".encode())
        self._hash.update(data)

    def hex(self) -> str:
        """The value as 64 hexadecimal digits."""
        return self._hash.hexdigest()
