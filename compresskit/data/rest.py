"""The samples of a source behind its first ones."""

from __future__ import annotations

from collections.abc import Iterator

from compresskit.data.source import Batch, Source, notes_of
from compresskit.data.walking import Fingerprint


class Rest:
    """A source without its first samples; see :class:`~compresskit.data.source.Source`.

    Args:
        source: The whole.
        skip: How many samples are left out, at least 0 and fewer than there are.
    """

    def __init__(self, source: Source, skip: int) -> None:
        self.name, self.kind, self.labelled, self.notes = source.name, source.kind, source.labelled, notes_of(source)
        self._source, self._skip = source, skip

    def __len__(self) -> int:
        return len(self._source) - self._skip

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches of at most ``size`` samples, of the first ``limit`` behind those that are left out."""
        at, rows = 0, 2 if self.kind == "pairs" else 1
        for batch in self._source.batches(size, None if limit is None else self._skip + limit):
            begin = max(0, self._skip - at)
            count = len(next(iter(batch.inputs.values()))) // rows
            at += count
            if begin < count:
                inputs = {name: values[begin * rows :] for name, values in batch.inputs.items()}
                yield Batch(inputs, None if batch.targets is None else batch.targets[begin:])

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`."""
        return Fingerprint({"of": self._source.fingerprint(), "skip": self._skip}).hex()
