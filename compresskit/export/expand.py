"""The placeholders of ``lower.py`` to operators that onnxruntime knows, on the graph after the export.

Scales stay float16 in the file with a Cast behind them, and what repeats is repeated by an Expand: onnxruntime folds
both when it loads the file. 4-bit codes of a ``DequantizeLinear`` become UINT4, or INT4 without stored zero points
when the grid is symmetric. Codes that an embedding shares with the output layer are stored once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from compresskit.export.lower import DOMAIN

MICROSOFT = "com.microsoft"


@dataclass
class _Graph:
    """Adds nodes and constants in front of one node."""

    graph: ir.Graph
    at: ir.Node
    made: dict[str, ir.Value]
    new: list[ir.Node] = field(default_factory=list)

    def constant(self, array: np.ndarray, name: str, dtype: ir.DataType | None = None, shape: Any = None) -> ir.Value:
        """An initializer; the same name is made once."""
        if name not in self.made:
            tensor: ir.TensorProtocol
            if dtype in (ir.DataType.UINT4, ir.DataType.INT4):
                tensor = ir.PackedTensor(array, dtype, shape=ir.Shape(shape), name=name)
            else:
                tensor = ir.Tensor(array, name=name)
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.graph.register_initializer(value)
            self.made[name] = value
        return self.made[name]

    def op(
        self, kind: str, inputs: list[ir.Value | None], attributes: dict[str, Any] | None = None, domain: str = ""
    ) -> ir.Value:
        """One node, in order before the placeholder."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        node = ir.node(kind, inputs, attributes or {}, domain=domain)
        self.new.append(node)
        return node.outputs[0]

    def once(self, key: str, make: Any) -> ir.Value:
        """The value of ``make()``, computed in the graph once for all its users."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def cast(self, value: ir.Value) -> ir.Value:
        """float32 of a float16 constant."""
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self.once(f"{value.name}:float", lambda: self.op("Cast", [value], {"to": int(ir.DataType.FLOAT)}))

    def integers(self, values: list[int]) -> ir.Value:
        """A small int64 constant."""
        return self.constant(np.array(values, np.int64), "i64:" + ",".join(map(str, values)))


@dataclass(frozen=True)
class _Weight:
    """A placeholder's packed weight."""

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    bits: int
    group: int
    block: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, node: ir.Node) -> _Weight:
        a = node.attributes
        codes, scales, zeros = (*node.inputs[:3], None)[:3]
        if codes is None or scales is None:
            raise ValueError("a placeholder without codes")
        shape = tuple(a["shape"].as_ints())
        return cls(codes, scales, zeros, a["bits"].as_int(), a["group"].as_int(), a["block"].as_int(), shape)

    @property
    def groups(self) -> int:
        return int(array(self.scales).shape[1])

    @property
    def repeat(self) -> int:
        """Blocks in a group; a group that reaches past the row is cut off at its end."""
        return -(-min(self.group, self.shape[1]) // self.block)

    @property
    def blocks(self) -> int:
        return self.groups * self.repeat


def array(value: ir.Value) -> np.ndarray:
    """The numbers of a constant."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is not a constant")
    return value.const_value.numpy()


def expand(model: ir.Model, accuracy_level: int = 0) -> dict[str, int]:
    """Replace every placeholder, in place.

    Args:
        model: The exported graph.
        accuracy_level: Of MatMulNBits; 0 computes in float32, 4 rounds activations to int8.

    Returns:
        How many nodes of each kind were written.
    """
    made: dict[str, ir.Value] = {}
    count: dict[str, int] = {}
    graph = model.graph
    nodes = [n for n in graph.all_nodes() if n.domain == DOMAIN]
    embedded = {n.inputs[0].name for n in nodes if n.op_type == "Embedding" and n.inputs[0] is not None}
    for node in nodes:
        build = _Graph(graph, node, made)
        weight = _Weight.of(node)
        if node.op_type == "Linear":
            out = _linear(build, weight, node, accuracy_level, str(weight.codes.name) in embedded)
        elif node.op_type == "Embedding":
            out = _embedding(build, weight, node)
        else:
            out = _dequantized(build, weight)
        count[node.op_type] = count.get(node.op_type, 0) + 1
        _substitute(node, out, build.new)
    model.opset_imports.pop(DOMAIN, None)
    if count:
        model.opset_imports[MICROSOFT] = 1
        _drop_unused(graph)
    return count


def _substitute(node: ir.Node, out: ir.Value, new: list[ir.Node]) -> None:
    """Put the new nodes in the placeholder's place."""
    graph = node.graph
    if graph is None:
        raise ValueError("a placeholder outside a graph")
    old = node.outputs[0]
    out.shape, out.type = old.shape, old.type
    if old.is_graph_output():
        out.name, old.name = old.name, None
    graph.insert_before(node, new)
    old.replace_all_uses_with(out, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _codes(weight: _Weight) -> np.ndarray:
    """uint8 ``(rows, blocks, bytes of a block)``: the packed codes, the end of a row padded to whole blocks."""
    codes, width = array(weight.codes), weight.block * weight.bits // 8
    size = weight.repeat * width
    if size > codes.shape[2]:
        codes = np.pad(codes, ((0, 0), (0, 0), (0, size - codes.shape[2])))
    return codes[:, :, :size].reshape(codes.shape[0], weight.blocks, width)


def _flat_codes(build: _Graph, weight: _Weight) -> ir.Value:
    codes = _codes(weight)
    return build.constant(codes.reshape(codes.shape[0], -1), f"{weight.codes.name}:flat")


def _linear(build: _Graph, weight: _Weight, node: ir.Node, level: int, shared: bool) -> ir.Value:
    x, bias = node.inputs[3], node.inputs[4] if len(node.inputs) > 4 else None
    codes = _codes(weight)
    if shared:
        flat = _flat_codes(build, weight)
        blocks = build.op("Reshape", [flat, build.integers(list(codes.shape))])
    else:
        blocks = build.constant(codes, f"{weight.codes.name}:blocks")
    attributes = {
        "K": weight.shape[1],
        "N": weight.shape[0],
        "bits": weight.bits,
        "block_size": weight.block,
        "accuracy_level": level,
    }
    inputs = [x, blocks, _scales(build, weight), _zeros(build, weight), None, bias]
    return build.op("MatMulNBits", inputs, attributes, MICROSOFT)


def _embedding(build: _Graph, weight: _Weight, node: ir.Node) -> ir.Value:
    attributes = {"bits": weight.bits, "block_size": weight.block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [_flat_codes(build, weight), node.inputs[3], _scales(build, weight), _zeros(build, weight)]
    out = build.op("GatherBlockQuantized", inputs, attributes, MICROSOFT)
    if weight.blocks * weight.block == weight.shape[1]:
        return out
    return build.op("Slice", [out, *(build.integers([v]) for v in (0, weight.shape[1], -1))])


def _scales(build: _Graph, weight: _Weight) -> ir.Value:
    scales = build.cast(weight.scales)
    if weight.repeat == 1:
        return scales
    return build.once(f"{weight.scales.name}:spread", lambda: _spread(build, weight, scales, weight.repeat))


def _spread(build: _Graph, weight: _Weight, value: ir.Value, repeat: int) -> ir.Value:
    """Each column ``repeat`` times: ``(rows, n)`` to ``(rows, n · repeat)``."""
    rows, columns = array(weight.scales).shape
    value = build.op("Reshape", [value, build.integers([rows, columns, 1])])
    value = build.op("Expand", [value, build.integers([rows, columns, repeat])])
    return build.op("Reshape", [value, build.integers([rows, columns * repeat])])


def _zeros(build: _Graph, weight: _Weight) -> ir.Value | None:
    if weight.zeros is None or weight.repeat == 1:
        return weight.zeros
    single = _unpacked(array(weight.zeros), weight.bits, weight.groups)
    if weight.bits == 8:
        zeros = build.constant(single, f"{weight.zeros.name}:bytes")
        return build.once(f"{weight.zeros.name}:spread", lambda: _spread(build, weight, zeros, weight.repeat))
    return build.constant(_packed(np.repeat(single, weight.repeat, 1)), f"{weight.zeros.name}:blocks")


def _unpacked(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    if bits == 8:
        return data[..., :count]
    return np.stack([data & 15, data >> 4], -1).reshape(*data.shape[:-1], -1)[..., :count]


def _packed(codes: np.ndarray) -> np.ndarray:
    """Two codes to a byte along the last axis, the even one in the low half."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return np.ascontiguousarray(codes[..., 0::2] | codes[..., 1::2] << 4)


def _dequantized(build: _Graph, weight: _Weight) -> ir.Value:
    """The weight in its original shape through DequantizeLinear, per row or blocked."""
    return build.once(f"{weight.codes.name}:weight", lambda: _dequantize(build, weight))


def _dequantize(build: _Graph, weight: _Weight) -> ir.Value:
    rows, columns = weight.shape[0], int(np.prod(weight.shape[1:]))
    codes = _unpacked(array(weight.codes), weight.bits, weight.group).reshape(rows, -1)[:, :columns]
    scales, zeros = build.cast(weight.scales), None
    per_row = weight.groups == 1
    if weight.zeros is not None:
        points = _unpacked(array(weight.zeros), weight.bits, weight.groups)
        zeros = _integers(build, points[:, 0] if per_row else points, weight, f"{weight.zeros.name}:points")
    shape = weight.shape if per_row else (rows, columns)
    data = _integers(build, codes.reshape(shape), weight, f"{weight.codes.name}:codes")
    if per_row:
        scales = build.op("Reshape", [scales, build.integers([rows])])
        return build.op("DequantizeLinear", [data, scales, zeros], {"axis": 0})
    out = build.op("DequantizeLinear", [data, scales, zeros], {"axis": 1, "block_size": weight.group})
    return build.op("Reshape", [out, build.integers(list(weight.shape))]) if len(weight.shape) > 2 else out


def _integers(build: _Graph, codes: np.ndarray, weight: _Weight, name: str) -> ir.Value:
    """Codes as UINT4/UINT8; of a symmetric grid as INT4/INT8 around zero."""
    signed = weight.zeros is None
    if weight.bits == 8:
        return build.constant((codes ^ 0x80).view(np.int8) if signed else np.ascontiguousarray(codes), name)
    flat = _packed((codes ^ 8 if signed else codes).reshape(-1))
    return build.constant(flat, name, ir.DataType.INT4 if signed else ir.DataType.UINT4, codes.shape)
