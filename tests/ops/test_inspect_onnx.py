from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compresskit.errors import InputError
from compresskit.ops.inspect_onnx import inspect_onnx
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.quantize.rtn import quantize_rtn

FLOAT = TensorProto.FLOAT


def save(
    path: Path,
    nodes: list[Any],
    stored: dict[str, np.ndarray],
    shape: tuple[int | str, ...],
    kind: int = FLOAT,
    **save: Any,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path, **save)
    return path


def weight(*shape: int) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values.reshape(-1)[::4] = 0
    return values


@pytest.mark.parametrize(
    ("node", "stored", "shape", "parameters", "macs"),
    [
        (
            ("Conv", ["x", "w", "b"], {"pads": [1] * 4}),
            {"w": weight(8, 4, 3, 3), "b": weight(8)},
            ("n", 4, 6, 6),
            296,
            36 * 288,
        ),
        (("ConvTranspose", ["x", "w"], {"strides": [2, 2]}), {"w": weight(4, 8, 2, 2)}, ("n", 4, 5, 5), 128, 25 * 128),
        (("Gemm", ["x", "w"], {"transB": 1}), {"w": weight(6, 16)}, ("n", 16), 96, 96),
        (("MatMul", ["x", "w"], {}), {"w": weight(16, 6)}, ("batch", "sequence", 16), 96, 128 * 96),
        (("MatMul", ["w", "x"], {}), {"w": weight(6, 16)}, (16, 5), 96, 5 * 96),
        (
            ("GRU", ["x", "w", "r"], {"hidden_size": 4}),
            {"w": weight(1, 12, 8), "r": weight(1, 12, 4)},
            (7, "batch", 8),
            144,
            7 * 144,
        ),
    ],
    ids=["conv", "transposed", "gemm", "matmul", "left", "gru"],
)
def test_operators(
    tmp_path: Path,
    node: tuple[Any, ...],
    stored: dict[str, np.ndarray],
    shape: tuple[int | str, ...],
    parameters: int,
    macs: int,
) -> None:
    kind, inputs, attributes = node
    made = helper.make_node(kind, inputs, ["y"], **attributes)
    found = json.loads(json.dumps(inspect_onnx(save(tmp_path / "m.onnx", [made], stored, shape))))
    (layer,) = found["layers"]
    assert layer["type"] == kind
    assert layer["parameters"] == found["totals"]["parameters"] == parameters
    assert layer["macs"] == found["totals"]["macs"] == macs
    assert layer["bytes"] == 4 * parameters
    assert layer["sparsity"] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("external", [False, True])
def test_weights_in_external_data_are_read(tmp_path: Path, external: bool) -> None:
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0} if external else {}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    found = inspect_onnx(save(tmp_path / "m.onnx", [node], {"w": weight(64, 64)}, ("n", 64), **options))
    assert found["totals"] == {"layers": 1, "parameters": 4096, "bytes": 16384, "macs": 4096, "sparsity": 0.25}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_operators_count_at_their_logical_size(tmp_path: Path, bits: int, symmetric: bool) -> None:
    table, matrix = torch.from_numpy(weight(20, 64)), torch.from_numpy(weight(24, 64))
    rows, columns = (quantize_rtn(t, Grid(bits, 32, symmetric)) for t in (table, matrix))
    stored = {
        "table": rows.codes.flatten(1).numpy(), "table_scales": rows.scales.float().numpy(),
        "codes": columns.codes.numpy(), "scales": columns.scales.float().numpy(),
    }  # fmt: skip
    gather, product = ["table", "x", "table_scales"], ["h", "codes", "scales"]
    if rows.zeros is not None and columns.zeros is not None:
        stored |= {"table_zeros": rows.zeros.numpy(), "zeros": columns.zeros.numpy()}
        gather.append("table_zeros")
        product.append("zeros")
    common = {"bits": bits, "block_size": 32, "domain": "com.microsoft"}
    nodes = [
        helper.make_node("GatherBlockQuantized", gather, ["h"], gather_axis=0, quantize_axis=1, **common),
        helper.make_node("MatMulNBits", product, ["h2"], K=64, N=24, **common),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "w"], ["y"]),
    ]
    stored["w"] = weight(24, 2)
    found = inspect_onnx(save(tmp_path / "m.onnx", nodes, stored, ("batch", "sequence"), TensorProto.INT64))
    first, second, third = found["layers"]
    assert (first["shape"], first["dtype"], first["macs"]) == ([20, 64], f"int{bits}", 0)
    assert (second["shape"], second["dtype"], second["macs"]) == ([24, 64], f"int{bits}", 128 * 24 * 64)
    assert third["macs"] == 128 * 48
    for entry, packed in ((first, rows), (second, columns)):
        assert entry["sparsity"] == pytest.approx(float((dequantize(packed) == 0).float().mean()))
    assert found["totals"]["macs"] == 128 * (24 * 64 + 48)


@pytest.mark.parametrize("blocked", [False, True])
def test_dequantized_weights_know_their_zero_points(tmp_path: Path, blocked: bool) -> None:
    codes = np.full((4, 8), 3, np.uint8)
    codes[0] = 7
    points = np.full((4, 2) if blocked else 4, 3, np.uint8)
    attributes = {"axis": 1, "block_size": 4} if blocked else {"axis": 0}
    scales = np.ones(points.shape, np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales", "points"], ["w"], **attributes),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"codes": codes, "scales": scales, "points": points}, ("n", 8))
    (layer,) = inspect_onnx(path)["layers"]
    assert (layer["name"], layer["dtype"], layer["sparsity"], layer["macs"]) == ("codes", "uint8", 0.75, 32)
    assert layer["bytes"] == codes.nbytes + scales.nbytes + points.nbytes


def test_scales_of_an_integer_product_belong_to_its_codes(tmp_path: Path) -> None:
    """As onnxruntime's dynamic quantization writes it: the scales are multiplied by another operator."""
    stored = {
        "fc.weight_quantized": np.arange(48, dtype=np.int8).reshape(8, 6), "fc.weight_scale": weight(6),
        "fc.weight_zero_point": np.zeros(6, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "fc.weight_quantized", "z", "fc.weight_zero_point"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "fc.weight_scale"], ["step"]),
        helper.make_node("Mul", ["f", "step"], ["y"]),
    ]
    found = inspect_onnx(save(tmp_path / "m.onnx", nodes, stored, ("n", 8)))
    (layer,) = found["layers"]
    assert (layer["name"], layer["dtype"], layer["bytes"]) == ("fc.weight_quantized", "int8", 48 + 4 * 6 + 6)
    assert layer["parameters"] == found["totals"]["parameters"] == 48
    assert not any("belong to no layer" in note for note in found["notes"])


def test_shared_weights_count_once_and_shape_constants_are_no_layers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    stored = {"shape": np.array([-1, 8], np.int64), "w": weight(8, 8)}
    found = inspect_onnx(save(tmp_path / "m.onnx", nodes, stored, ("n", 2, 4)))
    assert found["totals"]["parameters"] == 64
    assert found["totals"]["bytes"] == 256
    assert found["layers"][1]["tied_to"] == "w"
    assert "16 bytes of constants (shapes, limits, tables) belong to no layer" in found["notes"]


def test_inputs_of_unknown_size_give_no_macs(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    found = inspect_onnx(save(tmp_path / "m.onnx", [node], {"w": weight(2, 3, 3, 3)}, ("n", 3, "h", "w")))
    assert found["totals"]["macs"] is None
    assert any("MACs were not counted" in note for note in found["notes"])


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\x0a\xff\xff"])
def test_a_broken_file_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.onnx"):
        inspect_onnx(path)
