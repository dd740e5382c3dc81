"""What a session needs to know of an ONNX file before it is opened, read without touching the weights.

``onnx.load`` copies every embedded weight, which doubles the time to open a file and spoils the measured peak
memory. The few fields needed here sit in small messages, so the file is mapped and everything else is stepped over.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from compresskit.model import InputSpec

_GRAPH, _NODE, _INITIALIZER, _INPUT, _OUTPUT = 7, 1, 5, 11, 12  # field numbers of onnx.proto
_DTYPES = {  # ONNX's numbers of element types
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear"}
_PASS_INDEX = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten"}
_PASS_DATA = {"DequantizeLinear", "Cast", "Identity"}


@dataclass
class Node:
    """One operator: its type, the names that go in and come out, and its integer attributes."""

    op: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    ints: dict[str, int] = field(default_factory=dict)


@dataclass
class Graph:
    """The main graph: its nodes in order, the shape of each stored tensor by name, and what goes in and comes out.

    An element type that numpy doesn't have is empty. An axis of free size is a string, one of no name ``x_0``. What
    lies beside the file is named as it says so itself, unchecked.
    """

    nodes: list[Node] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: list[InputSpec] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    beside: set[str] = field(default_factory=set)


def scan(path: Path) -> Graph:
    """Read the operators and the tensor shapes of a file's main graph.

    Subgraphs and functions are left out. A damaged file gives what could be read: the engine, which reads the file
    next, is the one to refuse it.
    """
    graph = Graph()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, start, end in _fields(data, 0, len(data)):
                if number == _GRAPH:
                    _read_graph(data, start, end, graph)
    except (OSError, ValueError, IndexError):
        return graph
    graph.inputs = [spec for spec in graph.inputs if spec.name not in graph.shapes]  # old files list weights too
    return graph


def folds_weights(graph: Graph) -> bool:
    """True when the engine should turn quantized weights into floats at load.

    onnxruntime keeps each ``DequantizeLinear`` for a fusion with quantized activations. In a weight-only file these
    fusions exist for MatMul and Gemm (it makes them MatMulNBits); in front of anything else the weight is dequantized
    anew in every call. Per element that costs at least ten times what the MatMul fusion saves (measured at one row),
    so a file with both is folded unless the MatMuls hold more than ten times the weights of the others.
    """
    if any(node.op in _QUANTIZERS for node in graph.nodes):
        return False
    sizes = {
        node.outputs[0]: math.prod(graph.shapes.get(node.inputs[0], (1,)))
        for node in graph.nodes
        if node.op == "DequantizeLinear" and node.inputs and node.outputs
    }
    fused = other = 0
    for node in graph.nodes:
        size = sum(sizes.get(name, 0) for name in node.inputs)
        if node.op in ("MatMul", "Gemm"):
            fused += size
        else:
            other += size
    return other > 0 and 10 * other >= fused


def index_limits(graph: Graph) -> dict[str, int]:
    """By name of a graph input that is used as row number of a stored table: the smallest such table's rows.

    This is what keeps random token ids within the vocabulary of a file that carries no card.
    """
    maker = {name: node for node in graph.nodes for name in node.outputs}

    def source(name: str, through: set[str]) -> str:
        seen: set[str] = set()
        while name in maker and maker[name].op in through and maker[name].inputs and name not in seen:
            seen.add(name)
            name = maker[name].inputs[0]
        return name

    limits: dict[str, int] = {}
    for node in graph.nodes:
        if node.op not in ("Gather", "GatherBlockQuantized") or len(node.inputs) < 2:
            continue
        shape = graph.shapes.get(source(node.inputs[0], _PASS_DATA), ())
        if shape and node.ints.get("axis", node.ints.get("gather_axis", 0)) == 0:
            index = source(node.inputs[1], _PASS_INDEX)
            limits[index] = min(limits.get(index, shape[0]), shape[0])
    return limits


def _read_graph(data: mmap.mmap, start: int, end: int, graph: Graph) -> None:
    for number, first, last in _fields(data, start, end):
        if number == _NODE:
            graph.nodes.append(_read_node(data, first, last))
        elif number == _INITIALIZER:
            name, shape, place = _read_tensor(data, first, last)
            graph.shapes[name] = shape
            graph.beside |= {place} if place else set()
        elif number == _INPUT:
            graph.inputs.append(_read_value(data, first, last))
        elif number == _OUTPUT:
            graph.outputs.append(_read_value(data, first, last).name)


def _read_node(data: mmap.mmap, start: int, end: int) -> Node:
    node = Node()
    for number, first, last in _fields(data, start, end):
        if number == 1:
            node.inputs.append(_text(data, first, last))
        elif number == 2:
            node.outputs.append(_text(data, first, last))
        elif number == 4:
            node.op = _text(data, first, last)
        elif number == 5:
            name, value = "", None
            for part, one, two in _fields(data, first, last):
                if part == 1:
                    name = _text(data, one, two)
                elif part == 3:
                    value = _varint(data, one)[0]
            if value is not None:
                node.ints[name] = value
    return node


def _read_value(data: mmap.mmap, start: int, end: int) -> InputSpec:
    """A ValueInfoProto: its name, and through TypeProto and Tensor its element type and shape."""
    name, dtype, shape = "", "", []
    for number, first, last in _fields(data, start, end):
        if number == 1:
            name = _text(data, first, last)
        tensors = _fields(data, first, last) if number == 2 else ()
        for _, one, two in (part for part in tensors if part[0] == 1):
            for inner, a, b in _fields(data, one, two):
                if inner == 1:
                    dtype = _DTYPES.get(_varint(data, a)[0], "")
                elif inner == 2:
                    shape = [_read_axis(data, c, d) for part, c, d in _fields(data, a, b) if part == 1]
    return InputSpec(name, dtype, tuple(f"{name}_{axis}" if size == "" else size for axis, size in enumerate(shape)))


def _read_axis(data: mmap.mmap, start: int, end: int) -> int | str:
    for number, first, last in _fields(data, start, end):
        if number == 1:
            size = _varint(data, first)[0]
            return size if size < 1 << 62 else ""  # negative, by ten bytes of varint
        if number == 2:
            return _text(data, first, last)
    return ""


def _read_tensor(data: mmap.mmap, start: int, end: int) -> tuple[str, tuple[int, ...], str]:
    """Name, shape, and the file that holds the values; empty where this one does."""
    name, shape, place = "", [], ""
    for number, first, last in _fields(data, start, end):
        if number == 8:
            name = _text(data, first, last)
        elif number == 13:
            entry = {part: _text(data, one, two) for part, one, two in _fields(data, first, last)}
            place = entry.get(2, "") if entry.get(1) == "location" else place
        elif number == 1:  # one varint, or several packed
            while first < last:
                size, first = _varint(data, first)
                shape.append(size)
    return name, tuple(shape), place


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of each field of a protobuf message; payloads are not read."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            stop = _varint(data, at)[1]
        elif kind == 2:
            length, at = _varint(data, at)
            stop = at + length
        elif kind in (1, 5):
            stop = at + (8 if kind == 1 else 4)
        else:
            raise ValueError("not a protobuf message")
        if stop > end:
            raise ValueError("a field reaches past the end")
        yield key >> 3, at, stop
        at = stop


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _text(data: mmap.mmap, start: int, end: int) -> str:
    return data[start:end].decode("utf-8", "replace")
