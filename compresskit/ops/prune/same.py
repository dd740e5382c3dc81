"""Whether two ways to one output gave the same."""

from __future__ import annotations

from typing import Any

from compresskit.ops.calibration.trace import tensors_in

_CLOSE = 1e-5


def same(first: Any, second: Any) -> bool:
    """True where the tensors of two outputs have the same shapes, and values within 1e-5 in relative L2."""
    pairs = list(tensors_in(first)), list(tensors_in(second))
    if [t.shape for t in pairs[0]] != [t.shape for t in pairs[1]]:
        return False
    together = [(a.double(), b.double()) for a, b in zip(*pairs, strict=True)]
    return all(bool((a - b).norm() <= _CLOSE * a.norm()) for a, b in together)
