"""Calibration batches of padded text: sorted by length or in the source's order, and no token lost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from compresskit.data.source import Batch
from compresskit.model import InputSpec
from compresskit.stages.batches import batches_of
from compresskit.train.reading import Reading

TEXT = ("batch", "sequence")
INPUTS = (InputSpec("input_ids", "int64", TEXT), InputSpec("attention_mask", "int64", TEXT))


class Texts:
    """Rows of ``id`` repeated ``length`` times; a batch is as wide as its longest row. The label is the id."""

    name, kind, labelled = "texts", "tokens", True

    def __init__(self, rows: list[tuple[int, int]], hole: int | None = None) -> None:
        self.rows, self.hole = rows, hole

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        rows = self.rows[:limit]
        for part in (rows[at : at + size] for at in range(0, len(rows), size)):
            mask = np.zeros((len(part), max(length for _, length in part)), np.int64)
            for row, (_, length) in enumerate(part):
                mask[row, :length] = 1
            ids = mask * np.array([[one] for one, _ in part])
            if self.hole is not None:
                mask[:, self.hole] = 0
            yield Batch({"input_ids": ids, "attention_mask": mask}, np.array([one for one, _ in part]))

    def fingerprint(self) -> str:
        return "0" * 64


ROWS = [(3, 9), (1, 2), (2, 5), (3, 4), (1, 7), (2, 3)]


@pytest.mark.parametrize("by_length", [True, False])
def test_rows_keep_their_tokens_in_either_order(by_length: bool) -> None:
    found = batches_of(Texts(ROWS), INPUTS, 2, 6, by_length=by_length)
    rows = [(int(ids[0]), int(ids.sum() / ids[0])) for batch in found for ids in batch["input_ids"]]
    assert rows == (sorted(ROWS, key=lambda row: row[1]) if by_length else ROWS)
    assert by_length or {batch["input_ids"].shape for batch in found} == {(2, 9)}


def test_a_mask_with_holes_leaves_the_batches_as_they_are() -> None:
    source = Texts(ROWS, hole=1)
    found = batches_of(source, INPUTS, 2, 6)
    for batch, given in zip(found, source.batches(2), strict=True):
        assert all(np.array_equal(batch[name].numpy(), given.inputs[name]) for name in given.inputs)


def test_training_gives_each_padded_text_its_own_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.train.reading._READ", 2)
    reading = Reading(Texts(ROWS), INPUTS, len(ROWS), labelled=True)
    ids, mask, labels = next(reading.material().plain(6, 6))
    assert reading.classes and torch.equal(reading.labels, labels)
    assert torch.equal(ids[:, 0], labels) and ids.ne(0).sum(1).tolist() == mask.sum(1).tolist() == [n for _, n in ROWS]
