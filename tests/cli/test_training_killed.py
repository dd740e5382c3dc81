"""A training that is killed through the command line goes on to the same bytes; several processes write one bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(16, 64), nn.Dropout(0.1), nn.Linear(64, 4)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.first(x))))
"""
COMMAND = (
    *("-m", "compresskit", "quantize", "m.pt", "--arch", "net.py:Net", "--qat", "--data", "train.npz", "--lr", ".01"),
    *("--no-bench", "--seed", "1"),
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    layers = {"first": nn.Linear(16, 64), "last": nn.Linear(64, 4)}
    torch.save({f"{n}.{k}": v for n, m in layers.items() for k, v in m.state_dict().items()}, tmp_path / "m.pt")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1024, 16)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=x[:, :4].argmax(1))
    return tmp_path


def run(place: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, *COMMAND, *options], cwd=place, capture_output=True, text=True, timeout=240,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_same_command_goes_on_after_a_kill(place: Path) -> None:
    options = ("--epochs", "12", "--batch-size", "16", "--no-export")
    whole = run(place, *options, "-o", "whole")
    assert whole.returncode == 0, whole.stderr
    kept = (*options, "--checkpoint", "kept", "-o", "out")
    nothing = subprocess.DEVNULL
    started = subprocess.Popen([sys.executable, *COMMAND, *kept], cwd=place, stdout=nothing, stderr=nothing)
    deadline = time.monotonic() + 120
    while not list((place / "kept").glob("training-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait(timeout=60)
    assert started.returncode == -signal.SIGKILL and not (place / "out").exists()
    again = run(place, *kept)
    assert again.returncode == 0 and "going on after epoch" in again.stderr, again.stderr
    for name in ("model.safetensors", "compresskit.json"):
        assert (place / "out" / name).read_bytes() == (place / "whole" / name).read_bytes()


def test_the_state_may_not_lie_in_the_output(place: Path) -> None:
    done = run(place, "--checkpoint", "out/kept", "-o", "out")
    assert done.returncode == 2 and "lies in the output" in done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["m.pt", "net.py", "train.npz"]


@pytest.mark.slow
def test_several_processes_write_one_bundle(place: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    options = ("--epochs", "3", "--batch-size", "32")
    for output, words in (("two", launcher), ("one", ())):
        done = run(place, *options, "-o", output, launcher=words)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["m.pt", "net.py", "one", "train.npz", "two"]
    one, two = (json.loads((place / name / "compresskit.json").read_text())["history"][-1] for name in ("one", "two"))
    assert one["options"] == two["options"]
    for a, b in zip(one["facts"]["training"]["curve"], two["facts"]["training"]["curve"], strict=True):
        assert a == pytest.approx(b, rel=0.05)
