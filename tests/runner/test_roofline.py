"""What bounds a model: bytes and operations off the graph, rates off the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compresskit.benchmark.memory_rate import moved
from compresskit.ops.onnx_traffic import traffic
from compresskit.report import Measurement
from compresskit.runner import roofline
from compresskit.runner.candidate import Candidate

IN, OUT = 16, 32


def save(path: Path, nodes: list, weights: dict[str, np.ndarray], free: str | int = "batch") -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [free, IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def product(path: Path) -> Path:
    return save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((IN, OUT), np.float32)})


@pytest.mark.parametrize("batch", [1, 5])
def test_a_product_reads_weights_once_and_its_activations_once(tmp_path: Path, batch: int) -> None:
    found = traffic(product(tmp_path / "m.onnx"), {"batch": batch})
    assert found is not None
    # the input and the output are counted as the caller's arrays, and as what the product reads and writes
    assert found.bytes == 4 * IN * OUT + 2 * 4 * batch * (IN + OUT)
    assert (found.float_operations, found.int8_operations) == (2 * batch * IN * OUT, 0)


def test_products_between_quantizers_are_those_of_int8(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("QuantizeLinear", ["x", "s", "u"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "u"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["e"]),
            helper.make_node("MatMul", ["d", "e"], ["y"]),
        ],
        {
            "w": np.ones((IN, OUT), np.int8),
            "s": np.array(0.1, np.float32),
            "u": np.array(128, np.uint8),
            "z": np.array(0, np.int8),
        },
    )
    found = traffic(path, {"batch": 1})
    assert found is not None
    assert (found.float_operations, found.int8_operations) == (0, 2 * IN * OUT)
    assert found.bytes == IN * OUT + 6 + 4 * (IN + OUT) + IN + 4 * OUT


def test_products_of_activations_count_and_tables_count_by_row(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Gather", ["table", "row"], ["v"]),
            helper.make_node("Transpose", ["x"], ["t"]),
            helper.make_node("MatMul", ["x", "t"], ["p"]),
            helper.make_node("Add", ["p", "v"], ["y"]),
        ],
        {"table": np.ones((1000, 1), np.float32), "row": np.array([3], np.int64)},
    )
    found = traffic(path, {"batch": 2})
    assert found is not None and found.float_operations == 2 * 2 * 2 * IN
    assert found.bytes < 1000


def test_the_limit_is_the_longer_of_moving_and_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Candidate("m", product(tmp_path / "m.onnx"), "m.onnx")
    latency = Measurement(
        model="m", name="latency_p50", value=10.0, unit="ms", runtime="onnxruntime", batch=1, threads=1
    )
    cost = traffic(model.path, {"batch": 1})
    assert cost is not None
    for bytes_s, operations_s, word, limit in (
        (cost.bytes / 5e-3, 1e18, "memory", 5.0),
        (1e18, cost.float_operations / 2e-3, "arithmetic", 2.0),
    ):
        monkeypatch.setattr(roofline, "bandwidth", lambda *_, rate=bytes_s: rate)
        monkeypatch.setattr(roofline, "matrix_rate", lambda *_, rate=operations_s: rate)
        found, notes = roofline.limits([model], [latency])
        figures = {m.name: m.value for m in found}
        assert figures["limit"] == pytest.approx(limit) and figures["of_limit"] == pytest.approx(limit / 10)
        assert (figures["traffic"], figures["operations"]) == (cost.bytes, cost.float_operations)
        assert f"{10 * limit:.0f} % of what {word} allows" in notes[0]


def test_a_graph_without_shapes_has_no_limit_but_a_note(tmp_path: Path) -> None:
    node = helper.make_node("Odd", ["x"], ["h"], domain="mine")
    path = save(
        tmp_path / "m.onnx",
        [node, helper.make_node("MatMul", ["h", "w"], ["y"])],
        {"w": np.ones((IN, OUT), np.float32)},
    )
    latency = Measurement(model="m", name="latency_p50", value=1.0, runtime="onnxruntime", batch=1, threads=1)
    found, notes = roofline.limits([Candidate("m", path, "m.onnx")], [latency])
    assert found == [] and len(notes) == 1 and "no limit is known for m" in notes[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_bytes_are_moved_at_a_rate(threads: int) -> None:
    assert 1e7 < moved(1 << 21, threads, windows=1, window_s=0.02) < 1e13


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_engine_multiplies_at_a_rate(kind: roofline.Kind) -> None:
    from compresskit.benchmark.roofline import matrix_rate

    assert 1e8 < matrix_rate(kind, threads=1) < 1e15
