"""Multiply-accumulates with weights of an ONNX graph, from the shapes that ONNX infers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from compresskit.benchmark.feeds import axis_sizes
from compresskit.checkpoint.onnx_inputs import graph_inputs
from compresskit.errors import UsageError
from compresskit.ops.onnx_packed import GATHER, WEIGHT, Found

_LARGE = 1024
Shape = tuple[int, ...]


def count_onnx_macs(
    model: Any, constant: Callable[[str], bool], packed: Mapping[str, Found] | None = None
) -> tuple[dict[str, int | None] | None, dict[str, list[int]], list[str]]:
    """MACs of each operator with a constant weight, at batch 1 and sequences of 128.

    Args:
        model: An ``onnx.ModelProto``; it is not changed.
        constant: Tells whether a value is constant.
        packed: What ``join_packed`` found in the model.

    Returns:
        MACs by the operator's first output (None where a shape could not be inferred), the input shapes they hold for,
        and notes. The first is None when the sizes of the inputs are not known.
    """
    specs = graph_inputs(model)
    try:
        sizes = {spec.name: axis_sizes(spec, {}) for spec in specs}
    except UsageError as error:
        return None, {}, [f"MACs were not counted: {error.message}"]
    if not sizes:
        return None, {}, ["MACs were not counted: the graph does not give the shapes of its inputs"]
    shapes = infer_shapes(model, sizes, packed or {})
    if shapes is None:
        return None, {}, ["MACs were not counted: ONNX could not infer the shapes of this graph"]
    out: dict[str, int | None] = {}
    for node in model.graph.node:
        macs = macs_of(node, shapes, constant)
        if macs != 0:
            out[node.output[0]] = macs
    return out, {name: list(size) for name, size in sizes.items()}, []


def infer_shapes(model: Any, sizes: dict[str, Shape], packed: Mapping[str, Found]) -> dict[str, Shape] | None:
    """The shape of every value that ONNX can tell, weights included."""
    import onnx

    shadow = _shadow(model, sizes, packed)
    try:
        graph = onnx.shape_inference.infer_shapes(shadow, data_prop=True).graph
    except Exception:  # the checker's own kinds
        return None
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _shadow(model: Any, sizes: dict[str, Shape], packed: Mapping[str, Found]) -> Any:
    """The graph with fixed inputs, without large weights, and with standard operators of the same shapes."""
    import onnx

    graph = onnx.GraphProto(name=model.graph.name)
    for value in model.graph.input:
        if value.name in sizes:
            graph.input.append(_value(value.name, value.type.tensor_type.elem_type, sizes[value.name]))
    weights: dict[str, Shape] = {}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > _LARGE or tensor.data_location == onnx.TensorProto.EXTERNAL:
            graph.input.append(_value(tensor.name, tensor.data_type, tuple(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == WEIGHT and node.input[0] in packed:
            weights[node.output[0]] = packed[node.input[0]].shape
        else:
            graph.node.append(_standard(node, stored, weights, packed))
    for name, shape in weights.items():
        graph.input.append(_value(name, onnx.TensorProto.FLOAT, shape))
    for value in model.graph.output:
        graph.output.append(onnx.ValueInfoProto(name=value.name, type=_unshaped(value)))
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version
    )


def _standard(node: Any, stored: dict[str, Any], weights: dict[str, Shape], packed: Mapping[str, Found]) -> Any:
    """The node; MatMulNBits and GatherBlockQuantized as the MatMul and Gather that have the same shapes."""
    import onnx

    attributes = {a.name: a.i for a in node.attribute}
    output = node.output[0] if node.output else ""
    if node.op_type == "MatMulNBits":
        weights[f"{output}:weight"] = (attributes.get("K", 0), attributes.get("N", 0))
        return onnx.helper.make_node("MatMul", [node.input[0], f"{output}:weight"], [output])
    if node.op_type == GATHER and node.input[0] in packed:
        weights[f"{output}:table"] = packed[node.input[0]].shape
        return onnx.helper.make_node("Gather", [f"{output}:table", node.input[1]], [output], axis=0)
    if node.op_type == "GatherBlockQuantized" and not attributes.get("gather_axis"):
        table = stored.get(node.input[0])
        if table is None:
            return node
        packing = 8 // attributes.get("bits", 4) if table.data_type == onnx.TensorProto.UINT8 else 1
        weights[f"{output}:table"] = (*table.dims[:-1], table.dims[-1] * packing)
        return onnx.helper.make_node("Gather", [f"{output}:table", node.input[1]], [output], axis=0)
    return node


def _unshaped(value: Any) -> Any:
    import onnx

    return onnx.helper.make_tensor_value_info("", value.type.tensor_type.elem_type, None).type


def _value(name: str, kind: int, shape: Shape) -> Any:
    import onnx

    return onnx.helper.make_tensor_value_info(name, kind, shape)


def macs_of(node: Any, shapes: dict[str, Shape], constant: Callable[[str], bool]) -> int | None:
    """A weight is used once at each position; 0 for operators that multiply with no weight, None when unknown."""
    inputs, out = node.input, node.output[0] if node.output else ""
    if node.op_type == "MatMulNBits":
        size = next(a.i for a in node.attribute if a.name == "K")
        return math.prod(shapes[out]) * size if out in shapes else None
    at = {
        "Conv": 1,
        "ConvInteger": 1,
        "ConvTranspose": 1,
        "QLinearConv": 3,
        "GRU": 1,
        "LSTM": 1,
        "RNN": 1,
        "DynamicQuantizeLSTM": 1,
    }.get(node.op_type)
    if at is None:
        return _product(node, shapes, constant)
    weight, x, y = (shapes.get(name) for name in (inputs[at], inputs[0], out))
    if weight is None or x is None:
        return None
    if node.op_type in ("GRU", "LSTM", "RNN", "DynamicQuantizeLSTM"):
        again = shapes.get(inputs[2])
        return None if again is None else math.prod(x[:2]) * (math.prod(weight) + math.prod(again))
    if node.op_type == "ConvTranspose":
        return math.prod(x) // x[1] * math.prod(weight)
    return None if y is None else math.prod(y) // y[1] * math.prod(weight)


def _product(node: Any, shapes: dict[str, Shape], constant: Callable[[str], bool]) -> int | None:
    """MACs of a matrix product: each number of the result takes as many as the summed axis of the weight is long."""
    sides = {"MatMul": (0, 1), "Gemm": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}.get(node.op_type)
    if sides is None or not any(constant(node.input[side]) for side in sides):
        return 0
    right = constant(node.input[sides[1]])
    weight, out = shapes.get(node.input[sides[1 if right else 0]]), shapes.get(node.output[0])
    if not weight or out is None:
        return None
    turned = any(a.name == ("transB" if right else "transA") and a.i for a in node.attribute)
    axis = -2 if right != turned and len(weight) > 1 else -1
    return math.prod(out) * weight[axis]
