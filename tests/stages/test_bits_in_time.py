"""Bits of layers for a target latency; what a layer takes at some bits is made up here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.exporter import checked
from compresskit.model import Card, InputSpec, Model
from compresskit.ops.packed.modules import PackedLayer
from compresskit.ops.quantize.faster_bits import LayerTimes, share_of_time, widened
from compresskit.runner.api import method
from compresskit.stage import Chosen, Context
from compresskit.stages import shared_latency

FASTER_WIDE = {2: 0.9, 3: 0.8, 4: 0.6, 8: 0.3}
SLOWER = {2: 2.0, 3: 1.6, 4: 1.4, 8: 1.2}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(64, 64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.two(torch.relu(self.one(x)))))
        return out


def ratio_of(times: dict[int, float]) -> Callable[..., float]:
    """Stands for a measurement: each layer takes its share, weighted by its multiply-accumulates."""

    def ratio(module: nn.Module, *_: object) -> float:
        layers = [m for m in module.modules() if isinstance(m, nn.Linear | PackedLayer)]
        costs = [m.weight.numel() for m in layers]
        shares = [times[m.packed.grid.bits] if isinstance(m, PackedLayer) else 1.0 for m in layers]
        return sum(c * s for c, s in zip(costs, shares, strict=True)) / sum(costs)

    return ratio


def choose(
    net: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch, times: dict[int, float], **options: Any
) -> Chosen:
    monkeypatch.setattr(shared_latency, "_ratio", ratio_of(times))
    monkeypatch.setattr(checked, "export_checked", lambda *_: None)  # nothing is timed, so no file is needed
    model = Model(net.eval(), Card("torch", inputs=(InputSpec("x", "float32", ("batch", 64)),)), folder / "net.pt")
    return method("quantize.auto", **options).choose(model, Context(folder))


def bits_of(found: Chosen) -> dict[str, int]:
    options = found.stages[0].options()
    return {text.partition("=")[0]: int(text.partition("=")[2].partition("/")[0]) for text in options["layer_bits"]}


@pytest.mark.parametrize(
    ("target", "expected"), [(0.7, {}), (0.5, {"head": 8}), (0.32, {"one": 8, "two": 8, "head": 8})]
)
def test_layers_get_bits_until_the_model_is_fast_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: float, expected: dict[str, int]
) -> None:
    found = choose(Net(), tmp_path, monkeypatch, FASTER_WIDE, target_latency=target)
    assert bits_of(found) == expected
    assert ("have more bits because that is faster" in found.notes[-1]) == bool(expected)


@pytest.mark.parametrize(("times", "target", "least"), [(SLOWER, 0.999, "1.00"), (FASTER_WIDE, 0.2, "0.30")])
def test_a_target_that_no_bits_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: dict[int, float], target: float, least: str
) -> None:
    with pytest.raises(UsageError, match=f"can't be met: {least} was measured at the fastest bits"):
        choose(Net(), tmp_path, monkeypatch, times, target_latency=target)


def test_convolutions_have_no_bits_that_are_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Unflatten(1, (64, 1)), nn.Conv1d(64, 64, 1))
    with pytest.raises(InputError, match="no Linear layer"):
        choose(net, tmp_path, monkeypatch, FASTER_WIDE, target_latency=0.5)


@pytest.mark.parametrize("option", ["target_bits", "target_latency"])
def test_a_file_without_an_architecture_refuses_bits_by_layer(tmp_path: Path, option: str) -> None:
    model = Model(tmp_path / "net.onnx", Card("torch"), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=f"`{option}`: .*net.onnx has no architecture"):
        method("quantize.auto", **{option: 4 if option == "target_bits" else 0.5}).choose(model, Context(tmp_path))


def test_as_few_bytes_as_the_share_needs() -> None:
    layers = [LayerTimes(name, 10, {2: 0.9, 4: 0.5, 16: 1.0}, {2: 10, 4: size, 16: 99}) for name, size in
              (("a", 20), ("b", 15), ("c", 40))]  # fmt: skip
    bits = dict.fromkeys("abc", 2)
    assert widened(layers, bits, 0.9) == bits
    assert widened(layers, bits, 0.8) == bits | {"b": 4}
    assert widened(layers, bits, 0.64) == bits | {"a": 4, "b": 4}
    assert widened(layers, bits, 0.1) == dict.fromkeys("abc", 4)
    assert share_of_time(layers, dict.fromkeys("abc", 16)) == 1
