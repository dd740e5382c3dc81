"""What training walks through: orders, held-out samples, texts, and sources that don't fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training_models import data, equal, loss, net

from compresskit.data.opening import open_source
from compresskit.data.source import Batch, Source
from compresskit.errors import InputError
from compresskit.model import InputSpec
from compresskit.train.loop import fit
from compresskit.train.material import Material, Rows, Walked, filled, in_memory
from compresskit.train.reading import Reading
from compresskit.train.settings import Optimizing, Training

TEXT = (InputSpec("input_ids", "int64", ("batch", "sequence")), InputSpec("attention_mask", "int64", ("batch", "s")))


def walked(block: int, samples: int = 100) -> Walked:
    """The samples in parts of 7, as user code might give them."""
    return Walked(lambda: iter(zip(*(t.split(7) for t in data(100)), strict=True)), samples, block)


def rows_of(parts: Iterator[list[Tensor]]) -> list[float]:
    return torch.cat([part[0][:, 0] for part in parts]).tolist()


def epoch(material: Material, size: int = 10, seed: int = 0) -> list[list[Tensor]]:
    return list(material.epoch(size, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("material", [in_memory(data(100)), walked(1000), walked(25)], ids=["rows", "walk", "blocks"])
def test_an_epoch_has_every_sample_once_in_an_order_of_its_seed(material: Material) -> None:
    first, again, other = (epoch(material, seed=seed) for seed in (0, 0, 1))
    assert [len(part[0]) for part in first] == [10] * 10
    assert rows_of(first) == rows_of(again) != rows_of(other)
    assert sorted(rows_of(first)) == sorted(rows_of(other)) == sorted(data(100)[0][:, 0].tolist())
    for x, y in first:
        assert torch.equal((x[:, :4].sum(1) > x[:, 4:].sum(1)).long(), y)
    assert rows_of(material.plain(8, 30)) == data(100)[0][:30, 0].tolist()


@pytest.mark.parametrize("make", [lambda: in_memory(data(100)), lambda: walked(25)], ids=["rows", "walk"])
def test_held_out_samples_are_not_trained_on(make) -> None:
    rest, held = make().split(20, seed=1)
    assert (len(rest), len(held)) == (80, 20)
    found = rows_of(epoch(rest)) + rows_of(held.plain(6, 20))
    assert sorted(found) == sorted(data(100)[0][:, 0].tolist())


def test_a_walk_that_fits_into_a_block_trains_to_the_same_bytes() -> None:
    first, second = net(), net()
    how = Training(3, 16, Optimizing(0.1, "sgd", "cosine"))
    fit(first, data(100), loss, training=how)
    fit(second, walked(100), loss, training=how)
    assert equal(first, second)


def source(tmp_path: Path, count: int = 60) -> Source:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 255, (count, 6, 6, 3), np.uint8), y=rng.integers(0, 3, count))
    return open_source(str(tmp_path / "d.npz"), inputs=IMAGES)


IMAGES = (InputSpec("x", "float32", ("batch", 3, 6, 6)),)


def test_a_source_read_as_training_goes_on_gives_the_same_as_one_in_memory(tmp_path: Path) -> None:
    reading = Reading(source(tmp_path), IMAGES, 50, labelled=True)
    held, fetched = reading.material(), reading.material(most=1000)
    assert reading.classes and reading.labels is not None and reading.sample_bytes == 3 * 6 * 6 * 4 + 8
    assert isinstance(held, Rows) and isinstance(fetched, Rows) and len(held) == len(fetched) == 50
    taken = next(held.plain(50, 50))[0]
    whole = torch.from_numpy(next(source(tmp_path).batches(60)).inputs["x"])
    assert not torch.equal(taken, whole[:50])  # any samples, not the first: classes may lie one behind the other
    assert all(bool((whole == image).flatten(1).all(1).any()) for image in taken)
    for a, b in zip(epoch(held), epoch(fetched), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_users_batches_that_are_too_many_are_shuffled_in_blocks(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "import numpy as np\ndef walk():\n    for i in range(0, 60, 5):\n"
        "        yield np.arange(i, i + 5, dtype=np.float32)[:, None], np.arange(i, i + 5) % 3\n"
    )
    users = open_source(f"{tmp_path / 'code.py'}:walk")
    material = Reading(users, (), 60, labelled=True).material(most=20 * 12)
    assert isinstance(material, Walked) and material.block == 20
    found = rows_of(epoch(material))
    assert sorted(found) == list(range(60)) and found != sorted(found)
    assert sorted(found[:20]) == list(range(20))


def test_damaged_samples_are_found_wherever_they_are_read(tmp_path: Path) -> None:
    class Late:
        name, kind, labelled = "late", "arrays", False

        def __len__(self) -> int:
            return 600

        def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
            for at in range(0, 600, size):
                x = np.ones((min(size, 600 - at), 2), np.float32)
                x[-1] = np.nan if at else 1
                yield Batch({"x": x})

        def fingerprint(self) -> str:
            return ""

    for most in (1 << 20, 100):
        material = Reading(Late(), (), 600, labelled=False)
        with pytest.raises(InputError, match="'x' holds NaN or Inf"):
            epoch(material.material(most))


def test_samples_of_unequal_shapes_need_a_mask() -> None:
    with pytest.raises(ValueError, match="unequal"):
        filled([[torch.zeros(2, 3)], [torch.zeros(2, 4)]], 4)


@pytest.mark.parametrize("most", [1 << 20, 8])
def test_batches_of_text_are_as_wide_as_their_longest(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.train.reading._READ", 4)
    lengths = [3, 9, 2, 5, 4, 7, 1, 6]

    class Texts:
        name, kind, labelled = "texts", "tokens", True

        def __len__(self) -> int:
            return len(lengths)

        def take(self, rows: np.ndarray) -> Batch:
            own = [lengths[row] for row in rows]
            mask = (np.arange(max(own)) < np.array(own)[:, None]).astype(np.int64)
            return Batch({"input_ids": mask * np.array(own)[:, None], "attention_mask": mask}, np.array(own))

        def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
            for at in range(0, len(lengths), size):
                yield self.take(np.arange(at, min(at + size, len(lengths))))

        def fingerprint(self) -> str:
            return ""

    reading = Reading(Texts(), TEXT, 8, labelled=True)
    seen = []
    for ids, mask, labels in epoch(reading.material(most), size=2):
        assert ids.shape == mask.shape == (2, int(labels.max()))
        assert torch.equal(mask.sum(1), labels) and torch.equal(ids.amax(1), labels)
        seen += labels.tolist()
    assert sorted(seen) == sorted(lengths)


def test_texts_of_like_length_share_a_batch() -> None:
    lengths = torch.randint(1, 60, (203,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(60) < lengths[:, None]).long()
    material = in_memory([mask * lengths[:, None], mask, lengths], masks=(1,), texts=2)
    first, again, other = (epoch(material, size=8, seed=seed) for seed in (0, 0, 1))
    assert all(len(part[0]) == 8 for part in first) and len(first) == 25
    assert [p[2].tolist() for p in first] == [p[2].tolist() for p in again] != [p[2].tolist() for p in other]
    left = torch.bincount(lengths, minlength=60) - torch.bincount(torch.cat([p[2] for p in first]), minlength=60)
    assert left.min() == 0 and left.sum() == 3  # each sample once but for an incomplete last batch
    assert sum(p[0].numel() for p in first) < 1.2 * int(lengths.sum()) < 0.7 * 203 * 60
    spans = [int(p[2].max() - p[2].min()) for p in first]
    means = [float(p[2].float().mean()) for p in first]
    assert max(spans) < 30 and means != sorted(means)
