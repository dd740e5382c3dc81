"""``route --method experts`` on dense models: module and file give the same, and the bundle loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from net_folder import write_encoder, write_net

from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.ops.route.feed_forward import RoutedFeedForward
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.runtimes.onnxruntime import OnnxRuntime

NET = """
import torch
from torch import nn

def net():
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 72), nn.ReLU(), nn.Linear(72, 4))
    with torch.no_grad():  # each of four pixels switches its own units on
        for unit in range(64):
            module[1].weight[unit] *= 0.1
            module[1].weight[unit, unit % 4] = 2
        module[1].bias[:64] = -1
    return module

def bare():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU())
"""
OPTIONS: dict[str, Any] = {"experts": 4, "shared": 0.11, "keep": 0.6, "samples": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nets, and labelled pictures."""
    folder = tmp_path_factory.mktemp("dense")
    write_net(folder, NET, 4, 128)
    return folder


def run_on(made: Path, out: Path, *stages: Any, net: str = "net", **how: Any) -> Any:
    model = load(made / f"{net}.pt", arch=f"{made / 'net.py'}:{net}", input_shape=(1, 3, 4, 4))
    data = open_source(str(made / "data.npz"))
    return run(model, list(stages), out, **{"data": data, "bench": False, "force": True, **how})


def experts(**options: Any) -> Any:
    return method("route.experts", **{**OPTIONS, **options})


def test_module_and_file_are_routed_alike_and_load_again(made: Path, tmp_path: Path) -> None:
    report = run_on(made, tmp_path / "out", experts())
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    facts = report.history[-1]["facts"]
    assert list(facts["layers"]) == ["3"] and facts["layers"]["3"]["error"] < facts["layers"]["3"]["random"]
    assert facts["distance"]["clustered"] < facts["distance"]["random"]
    assert any("with clustered experts" in note and "with random ones" in note for note in report.notes)
    assert any("a token goes through" in note for note in report.notes)
    module = load(tmp_path / "out", arch=f"{made / 'net.py'}:net").module.eval()
    assert isinstance(module.get_submodule("3"), RoutedFeedForward)
    x = np.load(made / "data.npz")["x"]
    session = OnnxRuntime().open(tmp_path / "out" / "model.onnx", 1)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    for size in (1, 7, 128):
        parts = [session.run({session.inputs[0].name: x[at : at + size]}) for at in range(0, 128, size)]
        found = np.concatenate([next(iter(part.values())) for part in parts])
        assert np.abs(found - wanted).max() <= 1e-5


def test_it_is_trained_and_quantized(made: Path, tmp_path: Path) -> None:
    later = method("quantize.gptq", bits=8, samples=64)
    report = run_on(made, tmp_path / "out", experts(epochs=1, batch_size=32, lr=1e-3), later)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    assert report.history[0]["facts"]["training"]["epochs"] == 1
    assert "3.shared.up" in report.history[1]["facts"]["layers"]
    assert isinstance(
        load(tmp_path / "out", arch=f"{made / 'net.py'}:net").module.get_submodule("3"), RoutedFeedForward
    )


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        ("net", {"shared": 0.6}, "`shared` 0.6 leaves no experts of `keep` 0.6"),
        ("net", {"merge": True}, "`merge` is for mixtures of experts"),
        ("net", {"exclude": ("3",)}, "no feed-forward layer can be split"),
        ("net", {"include": ("nothing",)}, "no layer matches 'nothing'"),
        ("bare", {}, "no mixture of experts, and no dense feed-forward layer"),
    ],
)
def test_what_cannot_be_is_refused(made: Path, tmp_path: Path, net: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, InputError)) as caught:
        run_on(made, tmp_path / "out", experts(**options), net=net)
    assert message in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_layers_of_an_encoder_get_experts(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_encoder(tmp_path, 2, 64)
    data = open_source(str(tmp_path / "data.npz"))
    stage = experts(split="random", keep=0.8, include=("*.output.dense",))
    report = run(load(tmp_path / "in"), [stage], tmp_path / "out", data=data, bench=False)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    names = [f"bert.encoder.layer.{place}.output.dense" for place in (0, 1)]
    assert list(report.history[-1]["facts"]["layers"]) == names
    module = load(tmp_path / "out").module
    assert all(isinstance(module.get_submodule(name), RoutedFeedForward) for name in names)
