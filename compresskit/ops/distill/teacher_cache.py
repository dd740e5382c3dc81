"""A teacher asked once for each sample."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.distill.teacher import Stand

MOST = 1 << 28
"""Bytes of answers that are kept at most."""


class TeacherCache(nn.Module):
    """Knows what a teacher said of samples that it has seen; samples are known by their bytes, whatever their order.

    On a GPU the teacher is asked each time: that is faster than looking at the bytes.

    Args:
        stand: The teacher; its first output is kept, ``(n, …)`` of one shape for all samples.
        most: Bytes of answers that are kept.
    """

    def __init__(self, stand: Stand, most: int = MOST) -> None:
        super().__init__()
        self.stand = stand
        self._left = most
        self._known: dict[bytes, Tensor] = {}

    def forward(self, *given: Tensor, **named: Any) -> Tensor:
        """The teacher's first output."""
        tensors = [value for value in (*given, *named.values()) if isinstance(value, Tensor)]
        if tensors[0].device.type != "cpu":
            return self._asked(given, named)
        keys = _keys(tensors)
        known = [self._known[key] for key in keys if key in self._known]
        if len(known) == len(keys):
            return torch.stack(known)
        found = self._asked(given, named)
        for key, row in zip(keys, found, strict=True):
            if key not in self._known and self._left >= row.nbytes:
                self._left -= row.nbytes
                self._known[key] = row.clone()
        return found

    def train(self, mode: bool = True) -> TeacherCache:
        """A teacher stays in eval mode."""
        return super().train(False)

    def _asked(self, given: tuple[Tensor, ...], named: dict[str, Any]) -> Tensor:
        return next(tensors_in(self.stand(*given, **named)))


def _keys(tensors: list[Tensor]) -> list[bytes]:
    """A hash of each row of all tensors together."""
    rows = [tensor.detach().contiguous().numpy() for tensor in tensors]
    found = []
    for index in range(len(rows[0])):
        digest = hashlib.blake2b(digest_size=16)
        for array in rows:
            digest.update(array[index].tobytes())
        found.append(digest.digest())
    return found
