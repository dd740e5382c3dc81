"""Packed weights in an ONNX graph that are unpacked by operators: found again, so that each is one weight.

``export/expand.py`` writes them: a chain from uint8 codes ``(rows, groups, bytes)`` through tables to the weight, or,
in an embedding, from the rows that were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compresskit.ops.packed.format import BITS, LINEAR
from compresskit.ops.packed.formats import format_with
from compresskit.ops.packed.layout import packed_bytes

_STEPS = {"Cast", "Gather", "Reshape", "Slice", "Add", "Sub", "Mul", "Unsqueeze"}
GATHER, WEIGHT = "PackedGather", "PackedWeight"


@dataclass(frozen=True)
class Found:
    """A packed weight.

    Attributes:
        shape: Of the weight that the operators see.
        bits: Of a code.
        dtype: ``int3``, ``nf4`` …
        zero: The code that stands for 0 where there are no zero points; None where that isn't known.
        zeros: Name of the packed zero points, or None.
    """

    shape: tuple[int, ...]
    bits: int
    dtype: str
    zero: int | None
    zeros: str | None


def join_packed(model: Any) -> dict[str, Found]:
    """Put one node in the place of each chain, in place.

    An embedding's becomes ``PackedGather(codes, ids, scales, zeros)``, that of a weight
    ``PackedWeight(codes, scales, zeros)``. No runtime knows them; they are for reading.

    Args:
        model: An ``onnx.ModelProto``.

    Returns:
        By name of the codes.
    """
    graph = _Graph(model.graph)
    found: dict[str, Found] = {}
    replaced: dict[str, Any] = {}
    for node in model.graph.node:
        if graph.is_codes(node.input[0] if node.input else "") and node.op_type == "Gather":
            _join_gather(graph, node, found, replaced)
        for name in node.input if not graph.constant(node) else ():
            if name in graph.maker and graph.constant(graph.maker[name]):
                _join_weight(graph, name, found, replaced)
    if found:
        kept = [replaced.get(node.output[0] if node.output else "", node) for node in model.graph.node]
        needed = _needed(kept, [value.name for value in model.graph.output])
        del model.graph.node[:]
        model.graph.node.extend(node for node, keep in zip(kept, needed, strict=True) if keep)
    return found


class _Graph:
    def __init__(self, graph: Any) -> None:
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[Any]] = {}
        self._constant: dict[str, bool] = {}
        for node in graph.node:  # makers come before users
            for name in node.input:
                self.users.setdefault(name, []).append(node)
            if node.output:
                self._constant[node.output[0]] = bool(node.input) and all(
                    not n or n in self.stored or self._constant.get(n, False) for n in node.input
                )

    def constant(self, node: Any) -> bool:
        return bool(node.output) and self._constant.get(node.output[0], False)

    def is_codes(self, name: str) -> bool:
        tensor = self.stored.get(name)
        return tensor is not None and tensor.data_type == 2 and len(tensor.dims) == 3  # uint8

    def integers(self, name: str) -> list[int]:
        """The numbers of a constant; a single 0 where it isn't one."""
        from onnx import numpy_helper

        tensor = self.stored.get(name)
        return [0] if tensor is None else [int(n) for n in numpy_helper.to_array(tensor).reshape(-1)]

    def levels(self, name: str) -> tuple[float, ...] | None:
        """The numbers of a stored table that has a level for each code; None for other tensors."""
        from onnx import numpy_helper

        tensor = self.stored[name]
        if tensor.data_type != 1 or len(tensor.dims) != 1 or tensor.dims[0] not in [1 << bits for bits in BITS]:
            return None
        levels = numpy_helper.to_array(tensor).tolist()
        return tuple(levels) if levels == sorted(set(levels)) else None

    def leaves(self, name: str) -> Iterator[str]:
        """Stored tensors that a value is computed from; other inputs of the graph are left out."""
        stack, seen = [name], set()
        while stack:
            current = stack.pop()
            if current in self.stored and current not in seen:
                yield current
            elif current in self.maker and current not in seen:
                stack.extend(reversed(self.maker[current].input))
            seen.add(current)


def _join_gather(graph: _Graph, node: Any, found: dict[str, Found], replaced: dict[str, Any]) -> None:
    codes, ids = node.input[:2]
    end, columns = node, 0
    for step in _following(graph, node):
        if step.op_type == "Reshape" and end.op_type == "Mul":
            columns = graph.integers(step.input[1])[-1]
        elif columns and (step.op_type != "Slice" or len(step.input) < 4):
            break
        elif columns:
            columns = graph.integers(step.input[2])[-1]
        end = step
    if columns <= 0:
        return
    rest = [name for name in _row_tables(graph, end.output[0], ids) if name != codes]
    found[codes] = _found(graph, codes, (graph.stored[codes].dims[0], columns), rest, end.output[0])
    replaced[end.output[0]] = _node(GATHER, [codes, ids, *rest], end.output[0])


def _following(graph: _Graph, node: Any) -> Iterator[Any]:
    """The nodes that work on a result one after the other, as far as they may belong to the unpacking."""
    while following := graph.users.get(node.output[0]):
        node = following[0]
        if node.op_type not in _STEPS:
            return
        yield node


def _row_tables(graph: _Graph, name: str, ids: str) -> list[str]:
    """What is gathered by the same ids: codes, scales, zero points."""
    names, stack = [], [name]
    while stack:
        node = graph.maker.get(stack.pop())
        if node is None:
            continue
        if node.op_type == "Gather" and node.input[1] == ids and node.input[0] in graph.stored:
            names.append(node.input[0])
        else:
            stack.extend(reversed(node.input))
    return list(dict.fromkeys(names))


def _join_weight(graph: _Graph, name: str, found: dict[str, Found], replaced: dict[str, Any]) -> None:
    leaves = list(dict.fromkeys(graph.leaves(name)))
    codes = [leaf for leaf in leaves if graph.is_codes(leaf)]
    shape = _shape(graph, name)
    if len(codes) != 1 or not shape or name in replaced:
        return
    rows = graph.stored[codes[0]].dims[0]
    rest = [leaf for leaf in leaves if leaf != codes[0] and _of_rows(graph.stored[leaf], rows)]
    if rest:
        found[codes[0]] = _found(graph, codes[0], shape, rest, name)
        replaced[name] = _node(WEIGHT, [codes[0], *rest], name)


def _of_rows(tensor: Any, rows: int) -> bool:
    return len(tensor.dims) == 2 and tensor.dims[0] == rows and tensor.data_type in (1, 2, 10)  # float, uint8, half


def _shape(graph: _Graph, name: str) -> tuple[int, ...]:
    """Of a computed constant, read off the operators that shape it; empty where that can't be told."""
    node = graph.maker.get(name)
    if node is None:
        return tuple(graph.stored[name].dims) if name in graph.stored else ()
    if node.op_type == "Reshape":
        shape = tuple(graph.integers(node.input[1]))
        return shape if all(size > 0 for size in shape) else ()
    inner = _shape(graph, node.input[0])
    if node.op_type == "Transpose":
        return inner[::-1]
    if node.op_type == "Slice" and inner:
        return (*inner[:-1], graph.integers(node.input[2])[-1])
    return inner if node.op_type in ("Cast", "DequantizeLinear") else ()


def _found(graph: _Graph, codes: str, shape: tuple[int, ...], rest: list[str], end: str) -> Found:
    rows, groups, width = graph.stored[codes].dims
    columns = math.prod(shape) // max(rows, 1)
    size = math.ceil(columns / max(groups, 1))
    fitting = [bits for bits in BITS if packed_bytes(size, bits) == width]
    bits = fitting[-1] if fitting else max((b for b in BITS if b <= 8 * groups * width // max(columns, 1)), default=8)
    zeros = next((name for name in rest if graph.stored[name].data_type == 2), None)
    levels = next(filter(None, map(graph.levels, graph.leaves(end))), None)
    known = LINEAR if levels is None else format_with(levels)
    if known is None:
        return Found(shape, bits, f"table{bits}", None, zeros)
    return Found(shape, bits, known.dtype(bits), known.zero(bits), zeros)


def _node(kind: str, inputs: list[str], output: str) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, [output], domain="compresskit")


def _needed(nodes: list[Any], outputs: list[str]) -> list[bool]:
    """Which nodes the outputs still depend on."""
    wanted, keep = set(outputs), [False] * len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        subgraphs = any(a.HasField("g") for a in nodes[index].attribute)
        if subgraphs or wanted.intersection(nodes[index].output):
            keep[index] = True
            wanted.update(nodes[index].input)
    return keep
