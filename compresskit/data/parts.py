"""A source split in two: samples that the steps of a run see, and samples that they don't."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from compresskit.data.source import Batch, Indexed, Source, notes_of
from compresskit.data.walking import spans
from compresskit.errors import UsageError

MOST_HELD_OUT = 5000
"""Samples beyond which a measurement is sharp enough: more are better used by the steps."""
LEAST = 8
"""Samples that either part needs."""


class Part:
    """Some samples of another source, in its order."""

    def __init__(self, source: Source, rows: np.ndarray, about: str) -> None:
        """Take samples of a source.

        Args:
            source: Whose number of samples is known.
            rows: int64 ``(n,)``, ascending: which samples.
            about: What they are, for the fingerprint; the rows follow from it.
        """
        self.name, self.kind, self.labelled = source.name, source.kind, source.labelled
        self.notes = list(notes_of(source))
        self.vocabulary = getattr(source, "vocabulary", None)
        self.normalize, self.scaled = getattr(source, "normalize", None), getattr(source, "scaled", False)
        self.classes = getattr(source, "classes", ())
        self._source, self._rows, self._about = source, rows, about

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`compresskit.data.source.Source`."""
        wanted = self._rows if limit is None else self._rows[:limit]
        start, held = 0, None
        for batch in self._source.batches(size):
            count = _length(batch, self.kind)
            chosen = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + count)] - start
            start += count
            held = _joined(held, _rows_of(batch, chosen, self.kind), self.kind)
            while held is not None and _length(held, self.kind) >= size:
                yield _rows_of(held, np.arange(size), self.kind)
                held = _rows_of(held, np.arange(size, _length(held, self.kind)), self.kind)
            if start > wanted[-1]:
                break
        if held is not None and _length(held, self.kind):
            yield held

    def fingerprint(self) -> str:
        """See :class:`compresskit.data.source.Source`."""
        return hashlib.sha256(f"{self._source.fingerprint()}\0{self._about}".encode()).hexdigest()


class IndexedPart(Part):
    """Some samples of a source that gives any of them at once."""

    _source: Any

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`compresskit.data.source.Source`."""
        if self.kind == "pairs":  # of which ``take`` gives single texts
            yield from super().batches(size, limit)
            return
        for span in spans(len(self), size, limit):
            yield self.take(np.arange(span.start, span.stop))

    def take(self, rows: np.ndarray) -> Batch:
        """See :class:`compresskit.data.source.Indexed`."""
        found: Batch = self._source.take(
            2 * self._rows[rows // 2] + rows % 2 if self.kind == "pairs" else self._rows[rows]
        )
        return found


def split(source: Source, share: float, *, seed: int = 0) -> tuple[Source, Source]:
    """Hold samples out.

    Args:
        source: All samples.
        share: Of them that is held out, above 0 and below 1; at most :data:`MOST_HELD_OUT` samples.
        seed: Of the choice.

    Returns:
        (what is left, what is held out), each in the order of the source.

    Raises:
        UsageError: There are too few samples, or how many isn't known.
    """
    if not getattr(source, "counted", True):
        raise UsageError(f"{source.name}: how many samples it has isn't known, so none can be held out of it")
    total = len(source)
    held = min(round(share * total), MOST_HELD_OUT)
    if min(held, total - held) < LEAST:
        raise UsageError(
            f"{source.name} has {total} samples: too few to hold {share:g} of them out", f"give {2 * LEAST} or more"
        )
    order = np.random.default_rng(seed).permutation(total)
    cls = IndexedPart if isinstance(source, Indexed) else Part
    about = f"{held} of {total} held out, seed {seed}"
    left, out = np.sort(order[held:]), np.sort(order[:held])
    return cls(source, left, f"without {about}"), cls(source, out, f"only {about}")


def rest(source: Source, skip: int) -> Source:
    """The samples behind the first ``skip``, of which there are fewer than samples."""
    rows = np.arange(skip, len(source))
    return (IndexedPart if isinstance(source, Indexed) else Part)(source, rows, f"without the first {skip}")


def _length(batch: Batch, kind: str) -> int:
    if kind == "choices" and batch.targets is not None:
        return len(np.unique(batch.targets[:, 0]))
    rows = len(next(iter(batch.inputs.values())))
    return rows // 2 if kind == "pairs" else rows


def _rows_of(batch: Batch, rows: np.ndarray, kind: str) -> Batch:
    inputs, labelled = rows, rows
    if kind == "pairs":
        inputs = np.stack([2 * rows, 2 * rows + 1], 1).reshape(-1)
    elif kind == "choices" and batch.targets is not None:
        numbers = batch.targets[:, 0]
        inputs = labelled = np.flatnonzero(np.isin(numbers, np.unique(numbers)[rows]))
    return replace(
        batch,
        inputs={name: array[inputs] for name, array in batch.inputs.items()},
        targets=None if batch.targets is None else batch.targets[labelled],
        scored=None if batch.scored is None else batch.scored[inputs],
    )


def _joined(first: Batch | None, second: Batch, kind: str) -> Batch | None:
    """Two batches as one; padded text is padded to the longer of the two."""
    if first is None or not _length(first, kind):
        return second
    if not _length(second, kind):
        return first
    inputs = {name: _stacked(first.inputs[name], array) for name, array in second.inputs.items()}
    targets, scored = (
        None if a is None or b is None else _stacked(a, b)
        for a, b in ((first.targets, second.targets), (first.scored, second.scored))
    )
    return Batch(inputs, targets, scored)


def _stacked(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if first.ndim > 1 and first.shape[1] != second.shape[1] and first.shape[2:] == second.shape[2:]:
        longest = max(first.shape[1], second.shape[1])
        first, second = (
            np.pad(part, [(0, 0), (0, longest - part.shape[1]), *((0, 0) for _ in part.shape[2:])])
            for part in (first, second)
        )
    return np.concatenate([first, second])
