"""What a report says of 8-bit products, by engine and by the CPU that it was made on."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compresskit.benchmark import target
from compresskit.runner.candidate import Candidate
from compresskit.runner.int8_saturation import saturation_notes


@pytest.fixture(params=[True, False], ids=["vnni", "no vnni"])
def vnni(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Takes this machine for an x86 with or without VNNI."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(target, "has_vnni", lambda: request.param)
    return bool(request.param)


def convolution(path: Path, largest: int, quantized: bool) -> Path:
    """One convolution with quantized inputs, and an output in float or in 8 bit."""
    stored = {
        "codes": np.full((4, 2, 3, 3), largest, np.int8),
        "ws": np.ones(4, np.float32),
        "wz": np.zeros(4, np.int8),
        "s": np.float32(0.1),
        "z": np.uint8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["codes", "ws", "wz"], ["w"], axis=0),
        helper.make_node("Conv", ["xd", "w"], ["c" if quantized else "y"]),
    ]
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(model, path)
    return path


def notes(path: Path, *runtimes: str) -> list[str]:
    return saturation_notes([Candidate(f"m ({name})", path, "m", runtime=name) for name in runtimes], None, None)


def test_each_engine_is_told_what_saturates_in_it(vnni: bool, tmp_path: Path) -> None:
    path = convolution(tmp_path / "m.onnx", 127, quantized=False)
    assert notes(path, "onnxruntime") == []
    (note,) = notes(path, "onnxruntime", "openvino")
    assert "can saturate in 1 of 1 layers" in note
    assert ("(as here)" in note) is not vnni
    assert note.endswith(f"with evaluate `target` {'x86-avx2' if vnni else 'x86-vnni'}")


def test_what_holds_in_both_engines_is_told_once(vnni: bool, tmp_path: Path) -> None:
    path = convolution(tmp_path / "m.onnx", 127, quantized=True)
    assert len(notes(path, "openvino", "onnxruntime")) == 1


@pytest.mark.parametrize("quantized", [False, True])
def test_weights_of_7_bits_are_exact_in_both(vnni: bool, quantized: bool, tmp_path: Path) -> None:
    path = convolution(tmp_path / "m.onnx", 64, quantized)
    assert notes(path, "openvino") == ["8-bit products are exact on every CPU: no two weights can saturate"]
