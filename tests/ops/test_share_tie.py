"""Layers that share their weights: found, fitted, rebuilt and stored once."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.exporter.onnx_export import export_onnx
from compresskit.exporter.parity import parity
from compresskit.model import InputSpec
from compresskit.ops.share.tie import alike, likeness, runs_of, share, tie
from compresskit.ops.shrinking import CalibrationData


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(16, 48), nn.Linear(48, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(torch.relu(self.up(x))))


class Net(nn.Module):
    """Five blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(5)), nn.Linear(16, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def data(samples: int = 256) -> CalibrationData:
    x = torch.randn(samples, 16, generator=torch.Generator().manual_seed(1))
    batches = [{"x": part} for part in x.split(64)]
    return CalibrationData({"x": x[:2]}, batches, lambda module, batch: module(batch["x"]))


def test_runs_are_neighbours_of_one_shape() -> None:
    assert runs_of(Net(), 2) == [["blocks.0", "blocks.1"], ["blocks.2", "blocks.3"]]
    assert runs_of(Net(), 3) == [["blocks.0", "blocks.1", "blocks.2"], ["blocks.3", "blocks.4"]]
    assert runs_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 2) == []


def test_layers_with_similar_weights_are_found() -> None:
    net = Net()
    with torch.no_grad():
        for mine, first in zip(net.blocks[3].up.parameters(), net.blocks[0].up.parameters(), strict=True):
            mine.copy_(2 * first + 0.01 * torch.randn_like(first))
    assert alike(net, 0.9) == [["blocks.0.up", "blocks.3.up"]]
    assert likeness(net.blocks[0], net.blocks[0]) == pytest.approx(1)


@torch.no_grad()
def test_shared_weights_are_fitted_better_than_their_mean() -> None:
    x, wanted = data().batches[0]["x"], Net()(data().batches[0]["x"])
    errors = []
    for known in (CalibrationData(data().example, (), data().forward), data()):
        net = Net()
        facts, fitted = tie(net, runs_of(net, 2), known, lambda *_: None)
        errors.append(float((net(x) - wanted).norm()))
        assert facts["blocks.1"].owner == "blocks.0" and set(facts) == {"blocks.1", "blocks.3"}
        assert net.blocks[1].up.weight is net.blocks[0].up.weight
        assert net.blocks[1].norm.bias is net.blocks[0].norm.bias
    assert fitted == 4
    assert errors[1] < 0.95 * errors[0]


@torch.no_grad()
def test_equal_layers_stay_what_they_are() -> None:
    net = Net()
    net.blocks[1].load_state_dict(net.blocks[0].state_dict())
    x, before = data().batches[0]["x"], net(data().batches[0]["x"])
    tie(net, [["blocks.0", "blocks.1"]], data(), lambda *_: None)
    assert torch.allclose(net(x), before, atol=1e-4)


def test_the_onnx_file_holds_a_shared_tensor_once(tmp_path: Path) -> None:
    net, spec = Net(), (InputSpec("x", "float32", ("batch", 16)),)
    tie(net, runs_of(net, 2), data(), lambda *_: None)
    export_onnx(net, spec, tmp_path / "m.onnx")
    assert parity(net, tmp_path / "m.onnx", spec).passed
    count = sum(torch.Size(t.dims).numel() for t in onnx.load(tmp_path / "m.onnx").graph.initializer)
    assert count < sum(p.numel() for p in net.parameters()) + 50


def test_a_card_that_ties_other_shapes_is_refused() -> None:
    with pytest.raises(InputError, match="shapes differ"):
        share(Net(), {"head": "blocks.0"})
    with pytest.raises(InputError, match=r"no layer 'blocks\.9'"):
        share(Net(), {"blocks.9": "blocks.0"})
