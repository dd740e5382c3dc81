"""Routed adapters: each input gets its own adapter's answer, the file computes it too, and the bundle loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from compresskit.data.opening import open_source
from compresskit.errors import InputError, UsageError
from compresskit.ops.lora.folder import read_adapter, terms_of, write_adapter
from compresskit.ops.lora.routed import Routed
from compresskit.runner.api import method, run
from compresskit.runner.loading import load

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
"""
HALVES = (slice(0, 6), slice(6, 12))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net, two adapters that look at one half of its inputs each, and inputs that are in one of the halves."""
    folder = tmp_path_factory.mktemp("lora-route")
    (folder / "net.py").write_text(NET)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    torch.manual_seed(0)
    torch.save(scope["net"]().state_dict(), folder / "net.pt")
    rng = np.random.default_rng(0)
    x, y = np.zeros((200, 12), "float32"), np.arange(200) % 2
    for k, half in enumerate(HALVES):
        x[y == k, half] = rng.normal(1, 0.5, (100, 6))
        down = torch.zeros(2 + k, 12)
        down[:, half] = torch.randn(2 + k, 6) + 1
        tensors = {"0.lora_A.weight": down, "0.lora_B.weight": torch.randn(16, 2 + k)}
        if k:
            tensors |= {"4.lora_A.weight": torch.randn(3, 16), "4.lora_B.weight": torch.randn(3, 3)}
        config = {"peft_type": "LORA", "r": 2 + k, "lora_alpha": 4, "target_modules": ["0", "4"] if k else ["0"]}
        write_adapter(folder / f"adapter{k}", config, tensors, None)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "wrong.npz", x=x, y=y + 1)
    np.savez(folder / "plain.npz", x=x)
    return folder


def routed(
    made: Path, out: Path, *, data: str | None = None, count: int = 2, mix: tuple[str, ...] = (), **how: Any
) -> Any:
    model = load(made / "net.pt", arch=f"{made / 'net.py'}:net", input_shape=(1, 12))
    stage = method("lora.route", adapters=tuple(made / f"adapter{k}" for k in range(count)), mix=mix)
    source = open_source(str(made / data)) if data else None
    return run(model, [stage, *how.pop("later", [])], out, data=source, bench=False, force=True, **how)


@pytest.mark.parametrize("data", [None, "data.npz"])
def test_each_input_takes_its_own_adapter(made: Path, tmp_path: Path, data: str | None) -> None:
    report = routed(made, tmp_path / "out", data=data)
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    body = load(tmp_path / "out", arch=f"{made / 'net.py'}:net").body
    assert isinstance(body, nn.Module)
    body.eval()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert body.state_dict().keys() == stored.keys()
    base = load(made / "net.pt", arch=f"{made / 'net.py'}:net").body
    assert isinstance(base, nn.Module)
    layer, plain = body[0], base[0]  # type: ignore[index]
    assert isinstance(layer, Routed)
    stored_data = np.load(made / "data.npz")
    x, y = torch.from_numpy(stored_data["x"]), stored_data["y"]
    with torch.no_grad():
        chosen = layer.router.weights(x).argmax(-1).numpy()
        assert (chosen == y).mean() >= 0.95
        for k in range(2):
            adapter = read_adapter(made / f"adapter{k}")
            term = terms_of(adapter.config, adapter.tensors, base)["0"]
            assert term.down is not None and term.up is not None
            own = x[(y == k) & (chosen == k)]
            wanted = plain(own) + own @ term.down.T @ term.up.T
            assert torch.allclose(layer(own), wanted, atol=1e-4 if data is None else 0.2)


def test_inputs_of_a_label_take_shares_of_several_adapters(made: Path, tmp_path: Path) -> None:
    report = routed(made, tmp_path / "out", data="data.npz", mix=("1,0", "0.5,2"))
    assert any(gate.name == "ONNX parity" and gate.passed for gate in report.gates)
    body = load(tmp_path / "out", arch=f"{made / 'net.py'}:net").body
    layer = body[0]  # type: ignore[index]
    assert isinstance(layer, Routed)
    stored = np.load(made / "data.npz")
    with torch.no_grad():
        weights = layer.router.weights(torch.from_numpy(stored["x"])).numpy()
    for label, wanted in enumerate(([1, 0], [0.5, 2])):
        near = np.abs(weights[stored["y"] == label] - wanted).max(1) < 0.1
        assert near.mean() >= 0.9


@pytest.mark.parametrize(
    ("data", "count", "mix", "message"),
    [
        (None, 1, (), "two or more are needed to choose among"),
        ("plain.npz", 2, (), "samples that are labelled with the number of their adapter"),
        ("wrong.npz", 2, (), "labels are numbers of adapters, 0 to 1"),
        (None, 2, ("1,0", "1,1"), "which only a gate tells"),
        ("data.npz", 2, ("1,0",), "2 adapters need 2 times 2 shares"),
        ("data.npz", 2, ("1,0", "1"), "2 adapters need 2 times 2 shares"),
        ("data.npz", 2, ("1,x", "1,1"), "expected shares of the adapters as 1,0.5"),
    ],
)
def test_what_cannot_be_routed_is_refused(
    made: Path, tmp_path: Path, data: str | None, count: int, mix: tuple[str, ...], message: str
) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        routed(made, tmp_path / "out", data=data, count=count, mix=mix)


def test_nothing_follows(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"quantize\.rtn can't work on what lora\.route gives: nothing can"):
        routed(made, tmp_path / "out", later=[method("quantize.rtn", bits=8)])
