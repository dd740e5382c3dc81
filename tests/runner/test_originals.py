"""The original's export is kept: a second command on the same model starts from its graph, and trusts nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compresskit
from compresskit.exporter import checked
from compresskit.model import Model
from compresskit.runner.cache import Cache
from compresskit.runner.judging import Measuring
from compresskit.runner.pipeline import run
from compresskit.runner.steps import Job

NET = """\
from torch import nn
from helper import act


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.last(act(self.first(x)))
"""
HELPER = "def act(x):\n    return x.relu()\n"


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A net in the current folder; the files that a trace was made for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    (tmp_path / "helper.py").write_text(HELPER, encoding="utf-8")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    torch.manual_seed(0)
    parts = {"first": torch.nn.Linear(16, 32), "last": torch.nn.Linear(32, 4)}
    torch.save(torch.nn.ModuleDict(parts).state_dict(), "m.pt")
    found: list[str] = []
    real = checked.export_onnx

    def export_onnx(module: Any, inputs: Any, path: Path, **more: Any) -> Any:
        found.append(path.name)
        return real(module, inputs, path, **more)

    monkeypatch.setattr(checked, "export_onnx", export_onnx)
    return found


def forget() -> None:
    """As in another process, the helper is read anew."""
    del sys.modules["helper"]


def quantize(output: str, bits: int = 4, cache: str = "cache", seed: int = 0) -> Path:
    model: Model = compresskit.load("m.pt", arch="net.py:Net", input_shape=(1, 16))
    stage = compresskit.method("quantize.rtn", bits=bits)
    measuring = Measuring(bench=False, seed=seed)
    report = run(model, Job.of([stage], Path(output), None, measuring, cache=Cache(Path(cache))))
    assert next(gate for gate in report.gates if gate.name == "ONNX parity").passed
    return Path(output, "model.onnx")


def test_a_second_command_traces_nothing_and_writes_the_same(traced: list[str]) -> None:
    first = quantize("a").read_bytes()
    assert traced == ["model.onnx"]
    assert quantize("b").read_bytes() == first
    assert quantize("c", bits=8).is_file()
    assert len(traced) == 1
    assert quantize("d", cache="other").read_bytes() == first, "the same bytes without the cache"
    assert [entry.about["stages"] for entry in Cache(Path("cache")).entries()] == [["export"]]
    assert not list(Path("a").glob("graph*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.save({k: v + 1 for k, v in torch.load("m.pt").items()}, "m.pt"),
        lambda: Path("net.py").write_text(NET.replace("act(self.first(x))", "self.first(x)"), encoding="utf-8"),
        lambda: Path("helper.py").write_text(HELPER.replace("relu", "tanh"), encoding="utf-8") and forget(),
        lambda: next(Path("cache").glob("*/model.onnx")).write_bytes(b"broken"),
    ],
    ids=["weights", "architecture", "a helper of it", "damage"],
)
def test_what_changed_is_traced_again(change: Callable[[], object], traced: list[str]) -> None:
    quantize("a")
    change()
    out = quantize("b")
    assert len(traced) == 2
    module = compresskit.load("m.pt", arch="net.py:Net", input_shape=(1, 16)).module
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    found = compresskit.load("b", arch="net.py:Net", input_shape=(1, 16)).module(torch.from_numpy(x))
    assert torch.nn.functional.cosine_similarity(module(torch.from_numpy(x)).flatten(), found.flatten(), 0) > 0.98
    assert out.is_file()


def test_a_damaged_graph_costs_a_trace(traced: list[str]) -> None:
    from compresskit.checkpoint.bundle import read_card, seal

    quantize("a")
    place = next(Path("cache").glob("*/graph.onnx"))
    place.write_bytes(b"nothing")
    seal(place.parent, read_card(place.parent, verify=False))
    quantize("b")
    assert traced == ["model.onnx", "model.onnx"]


def test_a_cache_that_cannot_be_written_is_done_without(traced: list[str]) -> None:
    Path("file").write_text("", encoding="utf-8")
    assert quantize("a", cache="file/cache").is_file()
    assert traced == ["original.onnx"]
