"""Several processes that Accelerate joins: the result of one, within the rounding of sums."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_models import data, loss, net
from two_processes import trained

from compresskit.errors import MachineError
from compresskit.train.loop import fit
from compresskit.train.settings import Training

SCRIPT = Path(__file__).with_name("two_processes.py")


def launch(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a Python script in several processes, as ``torchrun`` does."""
    # A free port of its own, so that tests may run side by side.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)},
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_to_what_one_does(tmp_path: Path) -> None:
    done = launch(str(SCRIPT), str(tmp_path))
    assert done.returncode == 0, done.stderr
    alone, told = trained(None)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["unequal"] == "a batch of 3 can't be shared equally by 2 processes"
        assert found["kept"] == told["kept"] and len(found["curve"]) == len(told["curve"])
        for a, b in zip(found["curve"], told["curve"], strict=True):
            assert a == pytest.approx(b, abs=2e-6)
    assert len(list((tmp_path / "state").iterdir())) == 1


def test_without_accelerate_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MachineError, match="this needs accelerate") as found:
        fit(net(), data(), loss, training=Training(1))
    assert "compresskit[train]" in found.value.hint
