"""The search for widths that keep a share of the latency; what a candidate takes is made up here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import UsageError
from compresskit.model import InputSpec
from compresskit.ops.prune.cut import cut
from compresskit.ops.prune.structured import PruneSettings, amounts, plan
from compresskit.ops.shrinking import CalibrationData
from compresskit.stage import Context, silent
from compresskit.stages import shared_latency

INPUTS = (InputSpec("x", "float32", ("batch", 16)),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))))


def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: float) -> list[tuple[float, float]]:
    """What was timed, where the time is a fifth of the original's and the rest goes with the MACs."""
    torch.manual_seed(0)
    net = Net().eval()
    seen = CalibrationData({"x": torch.randn(2, 16)}, (), lambda module, batch: module(batch["x"]))
    base = amounts(net, seen)
    made = plan(net, seen, PruneSettings("l2", "uniform"), silent)
    cost = made.cost("macs", base, seen.example)

    def build(kept: dict[str, list[int]]) -> nn.Module:
        smaller = copy.deepcopy(net)
        cut(smaller, made.groups, kept)
        return smaller

    def ratio(module: nn.Module, *_: object) -> float:
        return 0.2 + 0.8 * amounts(module, seen)["macs"] / base["macs"]

    monkeypatch.setattr(shared_latency, "_ratio", ratio)
    choices = shared_latency.Choices(made.least(cost), lambda s: made.at(s, cost), build, "narrowest widths")
    kept, timed = shared_latency.within_latency(net, INPUTS, target, Context(tmp_path), choices)
    assert timed[-1][0] == pytest.approx(cost.share({name: len(units) for name, units in kept.items()}))
    return timed


def test_the_largest_candidate_in_time_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = search(tmp_path, monkeypatch, 0.6)
    share, ratio = timed[-1]
    assert ratio <= 0.6
    assert all(other <= share for other, took in timed if took <= 0.6)
    assert ratio > 0.45


def test_what_can_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"`target_latency` 0\.1 can't be met: 0\.2\d was measured"):
        search(tmp_path, monkeypatch, 0.1)
