"""What a call of an ONNX graph must move and compute at least: the two sides of its roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.bench.feeds import axis_sizes
from compresskit.checkpoint.onnx_file import read_onnx_file
from compresskit.checkpoint.onnx_inputs import graph_inputs
from compresskit.errors import UsageError
from compresskit.ops.onnx_macs import Shape, infer_shapes, macs_of
from compresskit.ops.onnx_packed import GATHER, join_packed

_INT8 = {"MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"}
_LOOKUPS = {"Gather", "GatherBlockQuantized", GATHER}
_ROUNDED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
_FLOAT = 4


@dataclass(frozen=True)
class Traffic:
    """Of one call.

    Attributes:
        bytes: Weights as they are stored, the rows that are looked up in tables, what goes in and comes out, and what
            each product (Conv, MatMul, …) reads and writes. All else is taken as fused into these.
        float_operations: Two for each multiply-accumulate of floats.
        int8_operations: The same of 8-bit integers, packed weights of ``accuracy_level`` 4 among them.
    """

    bytes: int
    float_operations: int
    int8_operations: int


def traffic(path: Path, sizes: Mapping[str, int]) -> Traffic | None:
    """What a call moves and computes; None where ONNX can't tell the shapes of every product.

    Args:
        path: An ``.onnx`` file.
        sizes: Sizes of free axes, as :func:`compresskit.bench.feeds.axis_sizes` takes them.

    Raises:
        InputError: The file is missing, damaged or not allowed.
    """
    model = read_onnx_file(path)
    packed = join_packed(model)
    try:
        inputs = {spec.name: axis_sizes(spec, sizes) for spec in graph_inputs(model)}
    except UsageError:
        return None
    shapes = infer_shapes(model, inputs, packed) if inputs else None
    if shapes is None:
        return None
    return _count(model, shapes, inputs)


def _count(model: Any, shapes: dict[str, Shape], inputs: dict[str, Shape]) -> Traffic | None:
    maker = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: _stored_bytes(tensor) for tensor in model.graph.initializer}
    constant = _constants(model, stored)
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    tables = {node.input[0] for node in model.graph.node if node.op_type in _LOOKUPS and node.input[0] in stored}
    moved = sum(size for name, size in stored.items() if name not in tables)
    moved += sum(_FLOAT * math.prod(shapes.get(node.output[0], ())) for name in tables for node in users[name])
    moved += sum(_FLOAT * math.prod(shape) for shape in inputs.values())
    moved += sum(_FLOAT * math.prod(shapes.get(value.name, (0,))) for value in model.graph.output)
    operations = {False: 0, True: 0}
    for node in model.graph.node:
        macs = macs_of(node, shapes, lambda _: True)
        if macs is None:
            return None
        if not macs:
            continue
        operations[_is_int8(node, maker)] += 2 * macs
        read = [name for name in node.input[:4] if name and name not in constant and name in shapes]
        moved += sum(math.prod(shapes[name]) * _width(maker.get(name)) for name in read)
        readers = users.get(node.output[0], [])
        moved += math.prod(shapes.get(node.output[0], (0,))) * (
            1 if readers and all(reader.op_type == "QuantizeLinear" for reader in readers) else _FLOAT
        )
    return Traffic(moved, operations[False], operations[True])


def _constants(model: Any, stored: Mapping[str, int]) -> set[str]:
    found = set(stored)
    for node in model.graph.node:
        if all(not name or name in found for name in node.input):
            found.update(node.output)
    return found


def _is_int8(node: Any, maker: Mapping[str, Any]) -> bool:
    """True where 8-bit integers are multiplied; a float product between DequantizeLinear nodes is fused into one."""
    if node.op_type in _INT8:
        return True
    if node.op_type == "MatMulNBits":
        return any(a.name == "accuracy_level" and a.i == 4 for a in node.attribute)
    makers = [maker.get(name) for name in node.input[:2]]
    if not all(found is not None and found.op_type == "DequantizeLinear" for found in makers):
        return False
    return any(
        found.input[0] in maker and maker[found.input[0]].op_type == "QuantizeLinear" for found in makers if found
    )


def _width(made_by: Any) -> int:
    """Bytes of a number that a product reads."""
    return 1 if made_by is not None and made_by.op_type in _ROUNDED else _FLOAT


def _stored_bytes(tensor: Any) -> int:
    import onnx

    four = {getattr(onnx.TensorProto, name, None) for name in ("INT4", "UINT4", "FLOAT4E2M1")}
    count = int(math.prod(tensor.dims))
    if tensor.data_type in four:
        return (count + 1) // 2
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
