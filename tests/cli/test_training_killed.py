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
from warm import Warm

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


ONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_same_command_goes_on_after_a_kill(warm_torch: Warm, place: Path) -> None:
    options = ("--epochs", "12", "--batch-size", "16", "--no-export")
    whole = warm_torch.run((*COMMAND, *options, "-o", "whole"), cwd=place, env=ONE)
    assert whole.returncode == 0, whole.stderr
    kept = (*options, "--checkpoint", "kept", "-o", "out")
    nothing = subprocess.DEVNULL
    started = subprocess.Popen([sys.executable, *COMMAND, *kept], cwd=place, stdout=nothing, stderr=nothing, env=ONE)
    deadline = time.monotonic() + 120
    while not list((place / "kept").glob("training-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait(timeout=60)
    assert started.returncode == -signal.SIGKILL and not (place / "out").exists()
    again = warm_torch.run((*COMMAND, *kept), cwd=place, env=ONE)
    assert again.returncode == 0 and "resuming after epoch" in again.stderr, again.stderr
    for name in ("model.safetensors", "compresskit.json"):
        assert (place / "out" / name).read_bytes() == (place / "whole" / name).read_bytes()


def test_the_state_may_not_lie_in_the_output(warm_torch: Warm, place: Path) -> None:
    done = warm_torch.run((*COMMAND, "--checkpoint", "out/kept", "-o", "out"), cwd=place)
    assert done.returncode == 2 and "lies in the output" in done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["m.pt", "net.py", "train.npz"]


@pytest.mark.slow
def test_several_processes_write_one_bundle(place: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    options = ("--epochs", "3", "--batch-size", "32")
    for output, words in (("two", launcher), ("one", ())):
        done = subprocess.run(
            [sys.executable, *words, *COMMAND, *options, "-o", output], cwd=place, capture_output=True, text=True,
            timeout=240, check=False, env=ONE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["m.pt", "net.py", "one", "train.npz", "two"]
    one, two = (json.loads((place / name / "compresskit.json").read_text())["history"][-1] for name in ("one", "two"))
    assert one["options"] == two["options"]
    for a, b in zip(one["facts"]["training"]["curve"], two["facts"]["training"]["curve"], strict=True):
        assert a == pytest.approx(b, rel=0.05)
