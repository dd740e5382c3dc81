"""Samples that lie class by class: the first of them must be of all classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compresskit.data.opening import open_source

LABELS = np.repeat(np.arange(4), 50)


def save(path: Path, rows: np.ndarray) -> str:
    np.savez(path, x=rows.astype(np.float32)[:, None], y=LABELS[rows])
    return str(path)


def test_sorted_samples_are_mixed_and_keep_their_labels(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / "sorted.npz", np.arange(200)))
    batch = next(source.batches(40, 40))
    assert set(batch.targets.tolist()) == {0, 1, 2, 3}
    assert (LABELS[batch.inputs["x"][:, 0].astype(int)] == batch.targets).all()
    taken = source.take(np.arange(40))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(taken.inputs["x"], batch.inputs["x"])
    every = np.concatenate([b.inputs["x"][:, 0] for b in source.batches(64)])
    assert sorted(every.tolist()) == list(range(200))


def test_a_fair_order_stays(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).permutation(200)
    batch = next(open_source(save(tmp_path / "fair.npz", rows)).batches(5, 5))
    assert batch.inputs["x"][:, 0].tolist() == rows[:5].tolist()


def test_one_class_stays_in_order(tmp_path: Path) -> None:
    batch = next(open_source(save(tmp_path / "one.npz", np.arange(50))).batches(5, 5))
    assert batch.inputs["x"][:, 0].tolist() == [0, 1, 2, 3, 4]
