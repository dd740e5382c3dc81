"""What a call of an ONNX graph must move and compute at least: the two sides of its roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.benchmark.feeds import axis_sizes
from compresskit.checkpoint.onnx_file import read_onnx_file
from compresskit.checkpoint.onnx_inputs import graph_inputs
from compresskit.checkpoint.onnx_tensors import stored_bytes
from compresskit.errors import UsageError
from compresskit.ops.onnx_macs import Shape, infer_shapes, macs_of
from compresskit.ops.onnx_packed import GATHER, join_packed
from compresskit.runtimes.onnx_graph import OnnxGraph

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
        sizes: Sizes of free axes, as :func:`compresskit.benchmark.feeds.axis_sizes` takes them.

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
    return _Count(model, shapes).traffic(inputs)


class _Count:
    def __init__(self, model: Any, shapes: dict[str, Shape]) -> None:
        self.nodes, self.outputs = model.graph.node, [value.name for value in model.graph.output]
        self.graph, self.shapes = OnnxGraph(model), shapes
        self.weights = {tensor.name: stored_bytes(tensor) for tensor in model.graph.initializer}

    def traffic(self, inputs: dict[str, Shape]) -> Traffic | None:
        """None where the shapes of a product aren't known."""
        moved = self._weights() + sum(_FLOAT * math.prod(shape) for shape in inputs.values())
        moved += sum(_FLOAT * self._size(name) for name in self.outputs)
        operations = {False: 0, True: 0}
        for node in self.nodes:
            macs = macs_of(node, self.shapes, lambda _: True)
            if macs is None:
                return None
            if macs:
                operations[self._is_int8(node)] += 2 * macs
                moved += self._reads(node) + self._writes(node.output[0])
        return Traffic(moved, operations[False], operations[True])

    def _weights(self) -> int:
        """Bytes of the weights, of lookup tables only the rows that are looked up."""
        lookups = [node for node in self.nodes if node.op_type in _LOOKUPS and node.input[0] in self.weights]
        tables = {node.input[0] for node in lookups}
        whole = sum(size for name, size in self.weights.items() if name not in tables)
        users = [node for name in tables for node in self.graph.users[name]]
        return whole + sum(_FLOAT * math.prod(self.shapes.get(node.output[0], ())) for node in users)

    def _size(self, name: str) -> int:
        return math.prod(self.shapes.get(name, (0,)))

    def _reads(self, node: Any) -> int:
        """Bytes of the activations that a product reads."""
        read = [name for name in node.input[:4] if name in self.shapes and not self.graph.constant(name)]
        return sum(self._size(name) * (1 if self._made_by(name) in _ROUNDED else _FLOAT) for name in read)

    def _writes(self, name: str) -> int:
        """Bytes of a product's result; rounded at once where all that reads it does."""
        users = self.graph.users.get(name, [])
        rounded = users and all(user.op_type == "QuantizeLinear" for user in users)
        return self._size(name) * (1 if rounded else _FLOAT)

    def _made_by(self, name: str) -> str:
        """The type of the operator that makes a value; empty for what is stored or given."""
        node = self.graph.producer.get(name)
        return "" if node is None else str(node.op_type)

    def _is_int8(self, node: Any) -> bool:
        """True where 8-bit integers are multiplied: by the operator, or between DequantizeLinear nodes it fuses."""
        if node.op_type in _INT8:
            return True
        if node.op_type == "MatMulNBits":
            return any(a.name == "accuracy_level" and a.i == 4 for a in node.attribute)
        operands = node.input[:2]
        if any(self._made_by(name) != "DequantizeLinear" for name in operands):
            return False
        return any(self._made_by(self.graph.producer[name].input[0]) == "QuantizeLinear" for name in operands)
