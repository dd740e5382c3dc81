"""The stages that quantize activations, through the library's front door: options, facts, notes and bad data."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compresskit.data.opening import open_source
from compresskit.errors import GateError, InputError, UsageError
from compresskit.model import Arch, Card, InputSpec, Model
from compresskit.registry import get
from compresskit.runner.layers import layers_of
from compresskit.runtimes.saturating import SaturatingOnnxRuntime
from compresskit.stage import Context

EXACT = SaturatingOnnxRuntime(clips=False)  # whatever this machine's products do
SPEC = (InputSpec("x", "float32", ("batch", 6, 32)),)


class Block(nn.Module):
    """Attention over six tokens of 32 features, one of which is much larger than the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(-1, -2) / 32**0.5, -1) @ v)
        return x + self.down(nn.functional.gelu(self.up(x)))


def block() -> nn.Module:
    torch.manual_seed(0)
    module = Block().eval()
    with torch.no_grad():
        module.norm.weight[5] = 60
    return module


@cache
def graph() -> bytes:
    """The ONNX file of ``block``: one export for all tests."""
    from compresskit.exporter.onnx_export import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(block(), SPEC, Path(folder) / "m.onnx")
        return (Path(folder) / "m.onnx").read_bytes()


def ready(tmp_path: Path, x: np.ndarray, form: str) -> tuple[Model, Context]:
    np.savez(tmp_path / "data.npz", x=x)
    (tmp_path / "m.onnx").write_bytes(graph())
    (tmp_path / "work").mkdir()
    body = block() if form == "torch" else tmp_path / "m.onnx"
    model = Model(body, Card(format=form, arch=Arch("code", "b:block"), inputs=SPEC), tmp_path / "m.pt")
    return model, Context(tmp_path / "work", open_source(str(tmp_path / "data.npz")))


def samples(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 6, 32)).astype(np.float32)


def done(name: str, tmp_path: Path, x: np.ndarray | None = None, **options: Any) -> tuple[Model, float]:
    """The quantized model, and the relative distance of its outputs on new samples."""
    stage = get(f"quantize.{name}")
    model, ctx = ready(tmp_path, samples() if x is None else x, stage.takes[0])
    result = stage(**options).run(model, ctx)
    feeds = {"x": np.random.default_rng(1).standard_normal((20, 6, 32)).astype(np.float32)}
    a, b = (next(iter(EXACT.open(Path(p)).run(feeds).values())) for p in (tmp_path / "m.onnx", result.body))
    return result, float(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_smoothquant_loses_less_than_static(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    _, plain = done("int8-static", tmp_path / "one")
    result, smooth = done("smoothquant", tmp_path / "two")
    assert smooth < 0.7 * plain
    facts = result.card.history[-1].facts
    assert facts["smoothed"]["qkv"]["folded"] == "norm" and facts["difference"] < 1e-5
    assert any("into the layer before" in note for note in facts["notes"])
    assert facts["layers"].keys() >= {"qkv.weight", "out.weight", "up.weight", "down.weight"}


def test_alpha_can_be_given(tmp_path: Path) -> None:
    result, _ = done("smoothquant", tmp_path, alpha=0.25)
    assert {layer["alpha"] for layer in result.card.history[-1].facts["smoothed"].values()} == {0.25}


def test_smoothing_that_changes_the_float_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: nn.Module, name: str) -> nn.Module:
        layer = module.get_submodule(name)
        with torch.no_grad():
            layer.weight.mul_(1.01)
        return layer

    monkeypatch.setattr("compresskit.ops.quantize.smooth._linear", broken)
    with pytest.raises(GateError, match="changed the float outputs"):
        done("smoothquant", tmp_path)


@pytest.mark.parametrize(
    ("target", "kind", "largest"),
    [("x86-vnni", onnx.TensorProto.UINT8, 127), ("x86-avx2", onnx.TensorProto.UINT8, 64), ("gpu", None, 127)],
)
def test_the_target_decides_the_codes(target: str, kind: int | None, largest: int, tmp_path: Path) -> None:
    result, distance = done("int8-static", tmp_path, target=target)
    tensors = onnx.load(result.body).graph.initializer
    weights = [onnx.numpy_helper.to_array(t) for t in tensors if t.name.endswith("weight_quantized")]
    assert len(weights) == 4 and max(np.abs(w.astype(int)).max() for w in weights) == largest
    zeros = {t.data_type for t in tensors if not t.dims and t.data_type in (onnx.TensorProto.UINT8,)}
    assert zeros == ({kind} if kind else set())
    assert result.card.history[-1].facts["target"] == target and distance < 0.2


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic", "smoothquant"])
def test_the_layers_of_a_report_tell_their_rounding(name: str, tmp_path: Path) -> None:
    result, _ = done(name, tmp_path)
    layers = [layer for layer in layers_of("m", result.body, result.card.history) if layer.bits == 8]
    assert layers and all(layer.sqnr is not None and 30 < layer.sqnr < 60 for layer in layers)


def test_dynamic_needs_no_data_and_honours_the_target(tmp_path: Path) -> None:
    result, distance = done("int8-dynamic", tmp_path, target="x86-avx2")
    assert distance < 0.2
    assert "7 bits" in result.card.history[-1].facts["notes"][0]


@pytest.mark.parametrize("name", ["int8-static", "smoothquant"])
def test_one_sample_is_noted(name: str, tmp_path: Path) -> None:
    result, _ = done(name, tmp_path, samples(1))
    assert any("one sample" in note for note in result.card.history[-1].facts["notes"])


@pytest.mark.parametrize("name", ["int8-static", "smoothquant"])
@pytest.mark.parametrize("fault", ["nan", "shape", "none"])
def test_bad_data_is_one_clear_error(name: str, fault: str, tmp_path: Path) -> None:
    x = samples(4)
    if fault == "nan":
        x[2, 1, 1] = np.nan
    if fault == "shape":
        x = x[:, :, :7]
    stage = get(f"quantize.{name}")
    with pytest.raises((InputError, UsageError)) as found:
        model, ctx = ready(tmp_path, x, stage.takes[0])
        stage().run(model, Context(ctx.work) if fault == "none" else ctx)
    assert "\n" not in found.value.message
    assert {"nan": "NaN", "shape": "7", "none": "needs calibration data"}[fault] in found.value.message
