"""The option for what codes stand for: what goes with it, and what it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compresskit
from compresskit.checkpoint.tensors import open_tensors
from compresskit.errors import UsageError
from compresskit.model import Card, InputSpec, Model
from compresskit.ops.packed.grid import dequantize
from compresskit.ops.packed.modules import PackedLayer


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.last = nn.Linear(256, 512), nn.Linear(512, 256), nn.Linear(256, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.down(self.up(x).relu()).relu())
        return out


@pytest.fixture
def model(tmp_path: Path) -> Model:
    module = Wide().eval()
    torch.save(module.state_dict(), tmp_path / "net.pt")
    spec = InputSpec("x", "float32", ("batch", 256))
    return Model(module, Card("torch", inputs=(spec,), task="classification"), tmp_path / "net.pt")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path / "data.npz"


def bits_of(bundle: Path) -> dict[str, str]:
    layers = compresskit.load(bundle, shipped=True).card.history[-1].facts["layers"]
    return {name: f"{fact.get('grid', 'linear')} {fact['bits']}" for name, fact in layers.items()}


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("rtn", {"bits": 5}, "5 bits need `weight_format` k-quant"),
        ("auto", {"bits": 6}, "6 bits need `weight_format` k-quant"),
        ("gptq", {"layer_bits": ("up=6",)}, "6 bits need `weight_format` k-quant"),
        ("rtn", {"weight_format": "k-quant", "group_size": 32}, "`group_size` can't be chosen"),
        ("gptq", {"weight_format": "k-quant", "layer_bits": ("up=4/32",)}, "`group_size` can't be chosen"),
        ("awq", {"weight_format": "k-quant", "symmetric": True}, "`symmetric` can't be chosen"),
        ("auto", {"weight_format": "k-quant", "symmetric": True}, "`symmetric` can't be chosen"),
    ],
)
def test_what_does_not_go_together_is_named(method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compresskit.method(f"quantize.{method}", **options)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_a_bundle_holds_the_types_that_were_asked_for(method: str, model: Model, data: Path, tmp_path: Path) -> None:
    stage = compresskit.method(
        f"quantize.{method}", bits=3, weight_format="k-quant", layer_bits=("down=6", "last=8"),
        **({} if method == "rtn" else {"samples": 64}),
    )  # fmt: skip
    report = compresskit.run(model, [stage], tmp_path / "out", data=None if method == "rtn" else data, export=False)
    assert bits_of(tmp_path / "out") == {"up": "k-quant 3", "down": "k-quant 6", "last": "linear 8"}
    assert report.coverage.done["down"] == "Linear 6 bit, Q6_K"
    assert any(note.startswith("k-quant is for") for note in report.notes)


@pytest.mark.parametrize("with_data", [True, False])
def test_auto_mixes_the_types(with_data: bool, model: Model, data: Path, tmp_path: Path) -> None:
    stage = compresskit.method("quantize.auto", weight_format="k-quant", target_bits=5.2)
    compresskit.run(model, [stage], tmp_path / "out", data=data if with_data else None, export=False)
    found = bits_of(tmp_path / "out")
    assert all(kind.startswith("k-quant") or kind == "linear 8" for kind in found.values())
    assert len(set(found.values())) > 1
    tensors = open_tensors(tmp_path / "out" / "model.safetensors")
    packed = sum(tensors.get(n).nbytes for n in tensors.names() if not n.endswith("bias"))
    assert packed * 8 / (2 * 256 * 512 + 8 * 256) <= 5.2


def test_auto_of_8_bits_stays_in_the_format(model: Model, data: Path, tmp_path: Path) -> None:
    stage = compresskit.method("quantize.auto", bits=8, weight_format="k-quant")
    compresskit.run(model, [stage], tmp_path / "out", data=data, export=False)
    assert set(bits_of(tmp_path / "out").values()) == {"linear 8"}


def test_bare_tensors_get_the_same_codes(model: Model, tmp_path: Path) -> None:
    stage = compresskit.method("quantize.rtn", bits=5, weight_format="k-quant")
    compresskit.run(tmp_path / "net.pt", [stage], tmp_path / "bare")
    compresskit.run(model, [stage], tmp_path / "out", export=False)
    bare, out = (open_tensors(tmp_path / at / "model.safetensors") for at in ("bare", "out"))
    assert sorted(bare.names()) == sorted(out.names()) and "up.multiples" in bare.names()
    assert all(torch.equal(bare.get(name), out.get(name)) for name in out.names())


def test_a_bundle_is_exported_as_it_computes(model: Model, data: Path, tmp_path: Path) -> None:
    stage = compresskit.method("quantize.rtn", bits=4, weight_format="k-quant")
    report = compresskit.run(model, [stage], tmp_path / "out", eval_data=data, bench=False)
    gate = next(gate for gate in report.gates if gate.name == "ONNX parity")
    assert gate.passed and gate.value is not None and gate.value < 1e-6
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 170_000
    packed = [layer.packed for layer in model.module.modules() if isinstance(layer, PackedLayer)]
    assert len(packed) == 3 and all(dequantize(weight).isfinite().all() for weight in packed)
