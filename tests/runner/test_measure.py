"""What measuring costs the data that it is given."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from compresskit.data.source import Batch
from compresskit.model import InputSpec
from compresskit.runner.candidate import Candidate
from compresskit.runner.measure import quality


class Uncounted:
    """A user's own data: nobody needs its length, which may cost a walk over all of it."""

    name, kind, labelled, counted = "mine.py:data", "arrays", False, False

    def __len__(self) -> int:
        raise AssertionError("the length was asked for")

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        yield Batch({"x": np.ones((4, 3), np.float32)})

    def fingerprint(self) -> str:
        return ""


class Doubling:
    inputs, outputs = (InputSpec("x", "float32", ("batch", 3)),), ("y",)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": 2 * feeds["x"]}


def test_a_users_source_is_not_asked_for_its_length(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Candidate, "open", lambda _: Doubling())
    models = [Candidate(name, tmp_path / name, name) for name in ("a", "b")]
    found = quality(models, Uncounted(), None)
    assert {m.name: m.value for m in found.measurements}["cosine"] == pytest.approx(1)
    assert found.notes == [
        "cosine, SQNR and agreement compare the outputs with the original's on the first 256 samples of mine.py:data"
    ]
