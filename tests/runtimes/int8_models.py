"""Small static int8 models with weights of the full range, whose products saturate on x86 without VNNI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
CASES = {
    # name: operator, weight, input, zero point of the activation, attributes, quantized output
    "conv-padded": ("Conv", (16, 8, 3, 3), (2, 8, 9, 9), 77, {"pads": [1, 1, 1, 1]}, True),
    "conv-odd": ("Conv", (5, 3, 3, 3), (2, 3, 9, 9), 10, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, True),
    "conv-groups": ("Conv", (6, 3, 3, 3), (2, 6, 9, 9), 128, {"group": 2, "dilations": [2, 2]}, True),
    "conv-same": ("Conv", (16, 8, 3, 3), (2, 8, 9, 9), 50, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, True),
    "conv-1d": ("Conv", (16, 5, 3), (2, 5, 20), 10, {"pads": [1, 1]}, True),
    "conv-deep": ("Conv", (8, 64, 3, 3), (1, 64, 5, 5), 3, {"pads": [1, 1, 1, 1]}, True),
    "matmul": ("MatMul", (33, 20), (3, 7, 33), 120, {}, True),
    "matmul-float": ("MatMul", (64, 20), (3, 7, 64), 120, {}, False),
    "gemm": ("Gemm", (30, 70), (4, 70), 120, {"transB": 1}, True),
}


def build(path: Path, case: str, *, weight_limit: int = 127, kinds: tuple[type, type] = (np.uint8, np.int8)) -> Path:
    """Write a case as ONNX; the same bytes anywhere.

    Args:
        path: The file.
        case: A key of ``CASES``.
        weight_limit: Largest code of a weight.
        kinds: Types of activations and weights.
    """
    operator, shape, given, zero, attributes, quantized = CASES[case]
    rng = np.random.default_rng(len(case))
    axis = 0 if operator == "Conv" or attributes.get("transB") else 1
    low, high = (-weight_limit, weight_limit + 1) if kinds[1] is np.int8 else (0, 256)
    zero -= 128 if kinds[0] is np.int8 else 0
    stored = {
        "w": rng.integers(low, high, shape).astype(kinds[1]),
        "ws": rng.integers(1, 9, shape[axis]).astype(np.float32) / 1024,
        "wz": np.zeros(shape[axis], kinds[1]),
        "xs": np.array(1 / 64, np.float32),
        "xz": np.array(zero, kinds[0]),
        "ys": np.array(1 / 4, np.float32),
        "yz": np.array(100 if kinds[0] is np.uint8 else 0, kinds[0]),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=axis),
        helper.make_node(operator, ["xd", "wd"], ["c" if quantized else "y"], **attributes),
    ]
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["cq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["cq", "ys", "yz"], ["y"]))
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", *given[1:]])
    y = helper.make_tensor_value_info("y", FLOAT, None)
    weights = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def feeds(case: str) -> dict[str, np.ndarray]:
    """Inputs that fill the range of the activations, exact multiples of their scale."""
    shape = CASES[case][2]
    return {"x": (np.random.default_rng(7).integers(-128, 256, shape) / 64).astype(np.float32)}
