"""Without evaluation data a result is compared with its original on the data that it was given, unseen ones first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compresskit.data.opening import open_source
from compresskit.data.parts import rest as behind
from compresskit.model import Applied
from compresskit.runner.api import method, run
from compresskit.runner.likeness import samples_of

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A net, and samples for it."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    torch.save(net.state_dict(), "net.pt")
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    np.savez("d.npz", x=x)
    return tmp_path


@pytest.mark.parametrize("skip", [0, 1, 16, 17, 63])
@pytest.mark.parametrize("limit", [None, 1, 20, 100])
@pytest.mark.usefixtures("made")
def test_the_rest_is_what_comes_behind(skip: int, limit: int | None) -> None:
    whole = open_source("d.npz")
    rest = behind(whole, skip)
    wanted = np.concatenate([batch.inputs["x"] for batch in whole.batches(64)])[skip:]
    found = np.concatenate([batch.inputs["x"] for batch in rest.batches(16, limit)])
    assert len(rest) == 64 - skip and np.array_equal(found, wanted[:limit])
    assert max(len(batch.inputs["x"]) for batch in rest.batches(16, limit)) <= 16
    assert (rest.fingerprint() == behind(whole, 16).fingerprint()) == (skip == 16)


def test_pairs_are_counted_as_pairs() -> None:
    class Pairs:
        name, kind, labelled = "pairs", "pairs", True

        def __len__(self) -> int:
            return 6

        def batches(self, size: int, limit: int | None = None):  # type: ignore[no-untyped-def]
            from compresskit.data.source import Batch

            for start in range(0, min(6, limit or 6), size):
                end = min(6, limit or 6, start + size)
                yield Batch({"ids": np.arange(2 * start, 2 * end)}, np.arange(start, end))

        def fingerprint(self) -> str:
            return "0"

    found = list(behind(Pairs(), 3).batches(2))
    assert [batch.inputs["ids"].tolist() for batch in found] == [[6, 7, 8, 9], [10, 11]]
    assert [batch.targets.tolist() for batch in found if batch.targets is not None] == [[3, 4], [5]]


def applied(**facts: object) -> Applied:
    return Applied("quantize.gptq", {}, facts, {})


@pytest.mark.parametrize(
    ("done", "count", "said"),
    [
        ([], 64, "64 samples of d.npz that no stage was fitted to"),
        ([applied(calibration={"samples": 16})], 48, "48 samples of d.npz that no stage was fitted to"),
        (
            [applied(calibration={"samples": 16}), applied(calibration={"samples": 48})],
            16,
            "16 samples of d.npz that no",
        ),
        ([applied(calibration={"samples": 49})], 64, "64 samples of d.npz that the result was fitted to"),
        ([applied(training={"samples": 8})], 64, "64 samples of d.npz that the result was fitted to"),
    ],
)
@pytest.mark.usefixtures("made")
def test_unseen_samples_come_first(done: list[Applied], count: int, said: str) -> None:
    found = samples_of(open_source("d.npz"), done)
    assert found is not None and len(found.source) == count and found.about.startswith(said)


@pytest.mark.usefixtures("made")
def test_the_report_says_what_the_likeness_is_of() -> None:
    found = {}
    for samples in (16, 64):
        steps = [method("quantize.gptq", bits=2, samples=samples)]
        report = run("net.pt", steps, f"out{samples}", arch="net.py:net", data="d.npz", bench=False)
        found[samples] = report.values("cosine")[f"out{samples}"]
        what = "that no stage was fitted to" if samples == 16 else "that the result was fitted to"
        (note,) = [note for note in report.notes if "with the original's" in note]
        assert f"on {found[samples].n} samples of d.npz {what}" in note
    assert [found[samples].n for samples in (16, 64)] == [48, 64]
    report = run("net.pt", [method("quantize.rtn")], "plain", arch="net.py:net", input_shape=(1, 8), bench=False)
    assert report.values("cosine")["plain"].n == 64 and any("64 random inputs" in note for note in report.notes)
