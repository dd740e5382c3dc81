"""Larger patches from options to bundle, and what is refused with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from net_folder import run_net, write_net
from safetensors.torch import load_file
from torch import nn

from compresskit.errors import InputError, UsageError
from compresskit.runner.api import method
from compresskit.runner.loading import load
from compresskit.stages import shared_latency

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.positions = nn.Conv2d(3, 16, 2, 2), nn.Parameter(torch.randn(1, 36, 16))
        self.mix, self.head = nn.Linear(16, 16), nn.Linear(16, 4)
    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.mix(x).relu().mean(1))

def net():
    return Net()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of patches, random weights, and labelled pictures."""
    folder = tmp_path_factory.mktemp("patches")
    write_net(folder, NET, 12)
    return folder


def run_on(made: Path, out: Path, *, export: bool = False, **options: Any) -> Any:
    stage = method("substitute.patches", **{"guard": "size", **options})
    return run_net(made, out, stage, export=export)


def test_the_bundle_rebuilds_what_was_measured(made: Path, tmp_path: Path) -> None:
    report = run_on(made, tmp_path / "out", export=True, patch_size=4, epochs=1, batch_size=16)
    facts = report.history[-1]["facts"]
    assert facts["patches"] == [36, 9] and facts["left"]["macs"] < 0.6 and list(facts["layers"]) == ["patch"]
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    assert any(note.startswith("patches of 4 pixels a side in place of 2: 36 become 9") for note in report.notes)
    body: Any = load(tmp_path / "out", arch=f"{made / 'net.py'}:net").body
    assert isinstance(body, nn.Module)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["patch.weight"].shape == (16, 3, 4, 4) and stored["positions"].shape == (1, 9, 16)
    assert body.state_dict().keys() == stored.keys()
    assert all(torch.equal(body.state_dict()[key], value) for key, value in stored.items())


def test_a_latency_is_aimed_at(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is made up: the time follows the number of patches."""

    def ratio(module: Any, *_: object) -> float:
        return 0.5 + float(module.positions.shape[1]) / 72

    monkeypatch.setattr(shared_latency, "_ratio", ratio)
    monkeypatch.setattr("compresskit.exporter.checked.export_checked", lambda *_args: None)
    facts = run_on(made, tmp_path / "out", target_latency=0.7).history[-1]["facts"]
    assert facts["layers"]["patch"]["size"] == 4 and facts["time"] == facts["timed"][-1][1] == 0.625
    with pytest.raises(UsageError, match=r"0\.56 was measured at the largest patches"):
        run_on(made, tmp_path / "no", target_latency=0.5)


def test_what_is_no_faster_is_refused_with_its_figure(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_latency, "share_of_model", lambda *_args, **_more: 1.02)
    with pytest.raises(InputError, match=r"gain nothing with 36 of them: the model took 1\.02 of the original's time"):
        run_on(made, tmp_path / "out", patch_size=4, guard="latency")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no target is given. Give one of `patch_size`, `target_latency`"),
        ({"patch_size": 4, "target_latency": 0.5}, "give one of them"),
        ({"patch_size": 5}, "give one of 3, 4, 6"),
        ({"patch_size": 2}, "give one of 3, 4, 6"),
    ],
)
def test_options_that_cannot_be_are_refused(made: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_on(made, tmp_path / "out", **options)
    assert message in str(caught.value)
