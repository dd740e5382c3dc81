"""A source split in two: nothing is in both, nothing is lost, and the order is that of the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from compresskit.data.opening import open_source
from compresskit.data.parts import split
from compresskit.data.source import Batch, Indexed
from compresskit.errors import UsageError


class Walked:
    """A source that can only be walked; ``pairs`` has two rows of inputs to a target."""

    name, labelled = "walked", True

    def __init__(self, count: int, kind: str = "tokens") -> None:
        self.count, self.kind = count, kind

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = 2 if self.kind == "pairs" else 1
        for start in range(0, min(limit or self.count, self.count), size):
            own = np.arange(start, min(start + size, self.count))
            inputs = np.repeat(own, rows)[:, None] * np.ones((1, 2 + start % 3), np.int64)
            yield Batch({"input_ids": inputs}, own.astype(np.float64))

    def fingerprint(self) -> str:
        return f"walked {self.count}"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.arange(100, dtype=np.float32).reshape(50, 2), y=np.arange(50) % 7)
    return path


def seen(source: object, size: int) -> list[float]:
    return [float(row) for batch in source.batches(size) for row in batch.targets]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["tokens", "pairs"])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_walked_source_is_parted_whatever_the_batch(kind: str, size: int) -> None:
    left, held = split(Walked(40, kind), 0.25, seed=3)
    assert (len(left), len(held)) == (30, 10)
    assert sorted(seen(left, size) + seen(held, size)) == [float(n) for n in range(40)]
    assert seen(left, size) == sorted(seen(left, size))
    for batch in left.batches(size):
        rows = batch.inputs["input_ids"][:, 0]
        assert rows.tolist() == np.repeat(batch.targets, 2 if kind == "pairs" else 1).tolist()
    assert sum(len(b.targets) for b in left.batches(size, 11)) == 11  # type: ignore[arg-type]


def test_an_indexed_source_stays_one(stored: Path) -> None:
    left, held = split(open_source(str(stored)), 0.2)
    assert isinstance(left, Indexed)
    values = [row for part in (left, held) for batch in part.batches(16) for row in batch.inputs["x"][:, 0].tolist()]
    assert sorted(values) == [float(n) for n in range(0, 100, 2)]
    assert left.take(np.array([3])).inputs["x"][0, 0] == next(left.batches(16)).inputs["x"][3, 0]


def test_parts_have_fingerprints_of_their_own(stored: Path) -> None:
    source = open_source(str(stored))
    found = {part.fingerprint() for seed in (0, 1) for part in split(source, 0.2, seed=seed)}
    assert len(found | {source.fingerprint()}) == 5
    assert split(source, 0.2)[0].fingerprint() == split(open_source(str(stored)), 0.2)[0].fingerprint()


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="too few"):
        split(Walked(20), 0.2)
