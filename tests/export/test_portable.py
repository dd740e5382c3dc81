"""One file for two engines: what our operators compute is the same under onnxruntime and OpenVINO."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_models import GRIDS, IMAGE, Convs, Many, Tied, corrected, ids, make, pack_all, packed
from torch import nn

from compresskit.exporter.onnx_export import export_onnx
from compresskit.model import InputSpec
from compresskit.ops.packed.grid import Grid
from compresskit.ops.packed.modules import PackedLinear
from compresskit.ops.packed.nf4 import nf4_grid

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
X = (InputSpec("x", "float32", ("batch", 64)),)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": 1}


def openvino(path: Path, feeds: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[dict[str, str]]]:
    """(outputs, layers as they run) in float32."""
    library = pytest.importorskip("openvino")
    compiled = library.Core().compile_model(str(path), "CPU", EXACT)
    request = compiled.create_infer_request()
    found = request.infer(feeds)
    outputs = {port.get_any_name(): np.array(found[port]) for port in compiled.outputs}
    layers = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        layers.append(
            {
                "type": info["layerType"].astype(str),
                "dtype": op.get_output_element_type(0).get_type_name(),
                "shape": op.get_output_partial_shape(0).to_string(),
                "name": op.get_friendly_name(),
            }
        )
    return outputs, layers


def plain_session(path: Path, optimized: Path | None = None) -> Any:
    """onnxruntime with nothing but its defaults."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def expected(module: nn.Module, x: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        out = module.eval()(torch.from_numpy(x))
    if isinstance(out, torch.Tensor):
        out = (out,)
    items = out.items() if isinstance(out, dict) else ((str(i), value) for i, value in enumerate(out))
    return {name: value.numpy() for name, value in items}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_openvino_agrees_on_every_grid(kind: type[nn.Module], tmp_path: Path) -> None:
    module = Many(kind, GRIDS)
    linear = kind is nn.Linear
    export_onnx(module, X if linear else (ids("x", 9),), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 64), dtype=np.float32) if linear else rng.integers(0, 9, (2, 5))
    found, _ = openvino(tmp_path / "m.onnx", {"x": x})
    for name, value in expected(module, x).items():
        assert distance(found[name], value) < (2e-6 if linear else 1e-9), name


def test_openvino_agrees_on_convolutions(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)
    module = Convs()
    export_onnx(module, IMAGE, tmp_path / "m.onnx")
    found, _ = openvino(tmp_path / "m.onnx", {"x": x})
    for got, value in zip(found.values(), expected(module, x).values(), strict=True):
        assert distance(got, value) < 2e-6


@pytest.mark.parametrize("grid", [Grid(3, 16), Grid(4, 32), Grid(4, 16, True), Grid(8, 16)], ids=str)
def test_openvino_reads_codes_that_are_shared(grid: Grid, tmp_path: Path) -> None:
    module = Tied(packed((500, 48), grid))
    export_onnx(module, (ids("x", 500),), tmp_path / "m.onnx")
    x = np.random.default_rng(0).integers(0, 500, (2, 5))
    found, _ = openvino(tmp_path / "m.onnx", {next(iter(feed_names(tmp_path / "m.onnx"))): x})
    assert distance(next(iter(found.values())), expected(module, x)["0"]) < 2e-6


def feed_names(path: Path) -> list[str]:
    return [value.name for value in onnx.load(path).graph.input]


SLOW = [pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 4, 8)]


@pytest.mark.parametrize("grid", [Grid(3, 32), Grid(4, 32)], ids=str)
def test_openvino_agrees_on_corrections(grid: Grid, tmp_path: Path) -> None:
    layer = corrected(grid)
    export_onnx(layer, (InputSpec("x", "float32", ("batch", 512)),), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((3, 512), dtype=np.float32)
    found, _ = openvino(tmp_path / "m.onnx", {"x": x})
    assert distance(next(iter(found.values())), expected(layer, x)["0"]) < 2e-6


@pytest.mark.parametrize("bits", [3, *SLOW])
def test_a_whole_language_model_agrees(bits: int, tmp_path: Path) -> None:
    module, inputs = make("llama")
    pack_all(module, Grid(bits, 16))
    export_onnx(module, inputs, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    feeds = {"input_ids": rng.integers(0, 40, (2, 7)), "attention_mask": np.ones((2, 7), np.int64)}
    feeds = {name: feeds[name] for name in feed_names(tmp_path / "m.onnx")}
    found, _ = openvino(tmp_path / "m.onnx", feeds)
    with torch.no_grad():
        logits = module(input_ids=torch.from_numpy(feeds["input_ids"])).logits.numpy()
    assert distance(next(iter(found.values())), logits) < 1e-5


@pytest.mark.parametrize("grid", [Grid(2, 32), Grid(3, 32), Grid(3, 32, True), Grid(4, 32), Grid(8, 32)], ids=str)
def test_both_engines_keep_the_codes_of_a_product(grid: Grid, tmp_path: Path) -> None:
    layer = nn.Sequential(PackedLinear(nn.Linear(256, 64), packed((64, 256), grid)), nn.ReLU())
    export_onnx(layer, (InputSpec("x", "float32", ("batch", 256)),), tmp_path / "m.onnx", accuracy_level=4)
    plain_session(tmp_path / "m.onnx", tmp_path / "optimized.onnx")
    count = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert count.pop("MatMulNBits") == 1
    assert set(count) <= {"Add", "Relu", "Squeeze", "Unsqueeze", "Reshape"}
    _, layers = openvino(tmp_path / "m.onnx", {"x": np.zeros((1, 256), np.float32)})
    constants = {(layer["dtype"], layer["shape"]) for layer in layers if layer["type"] == "Const"}
    wide = {dtype for dtype, shape in constants if sorted(shape.strip("[]").split(",")) == ["256", "64"]}
    assert wide == {"u8" if grid.bits == 8 else "u4"}


def test_a_plain_session_folds_convolutions(tmp_path: Path) -> None:
    export_onnx(Convs(), IMAGE, tmp_path / "m.onnx")
    plain_session(tmp_path / "m.onnx", tmp_path / "optimized.onnx")
    count = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert {name for name in count if "Conv" in name}
    assert not {"Gather", "DequantizeLinear", "Mul", "Sub", "Cast", "Where"} & set(count)


def test_nf4_products_run_in_float(tmp_path: Path) -> None:
    layer = PackedLinear(nn.Linear(128, 64), packed((64, 128), nf4_grid()))
    export_onnx(layer, (InputSpec("x", "float32", ("batch", 128)),), tmp_path / "m.onnx")
    plain_session(tmp_path / "m.onnx", tmp_path / "optimized.onnx")
    count = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert set(count) <= {"Gemm", "MatMul", "Add"}
    x = np.random.default_rng(0).standard_normal((3, 128), dtype=np.float32)
    found, _ = openvino(tmp_path / "m.onnx", {"x": x})
    assert distance(next(iter(found.values())), expected(layer, x)["0"]) < 2e-6
