"""Packed weights in an ONNX graph that are unpacked by operators: found again, so that each is one weight.

``exporter/expand.py`` writes them: a chain from uint8 codes ``(rows, groups, bytes)`` through tables to the weight, or,
in an embedding, from the rows that were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compresskit.ops.packed.format import BITS, LINEAR, WIDTHS
from compresskit.ops.packed.formats import format_with
from compresskit.ops.packed.k_quant import K_QUANT
from compresskit.ops.packed.layout import packed_bytes
from compresskit.ops.packed.palette import PALETTES
from compresskit.runtimes.onnx_graph import OnnxGraph

_STEPS = {"Cast", "Gather", "Reshape", "Slice", "Add", "Sub", "Mul", "Unsqueeze", "GatherElements"}
GATHER, WEIGHT = "PackedGather", "PackedWeight"


@dataclass(frozen=True)
class Found:
    """A packed weight.

    Attributes:
        shape: Of the weight that the operators see.
        bits: Of a code.
        dtype: ``int3``, ``nf4``, ``palette4``, ``q4_k`` …
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
    graph = OnnxGraph(model)
    found: dict[str, Found] = {}
    replaced: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input and _is_codes(graph, node.input[0]):
            _join_gather(graph, node, found, replaced)
        if not any(map(graph.constant, node.output)):
            for name in filter(graph.constant, node.input):
                _join_weight(graph, name, found, replaced)
    if found:
        kept = [replaced.get(node.output[0] if node.output else "", node) for node in model.graph.node]
        needed = _needed(kept, [value.name for value in model.graph.output])
        del model.graph.node[:]
        model.graph.node.extend(node for node, keep in zip(kept, needed, strict=True) if keep)
    return found


def _is_codes(graph: OnnxGraph, name: str) -> bool:
    tensor = graph.stored.get(name)
    return tensor is not None and tensor.data_type == 2 and len(tensor.dims) == 3  # uint8


def _levels(graph: OnnxGraph, name: str) -> tuple[float, ...] | None:
    """The numbers of a stored table that has a level for each code; None for other tensors."""
    tensor = graph.stored[name]
    if tensor.data_type != 1 or len(tensor.dims) != 1 or tensor.dims[0] not in [1 << bits for bits in BITS]:
        return None
    levels = graph.array(name).tolist()
    return tuple(levels) if levels == sorted(set(levels)) else None


def _integers(graph: OnnxGraph, name: str) -> list[int]:
    """The numbers of a constant; a single 0 where it isn't one."""
    return [int(n) for n in graph.array(name).reshape(-1)] if name in graph.stored else [0]


def _join_gather(graph: OnnxGraph, node: Any, found: dict[str, Found], replaced: dict[str, Any]) -> None:
    codes, ids = node.input[:2]
    end, columns = node, 0
    for step in _following(graph, node):
        if step.op_type == "Reshape" and end.op_type in ("Mul", "Sub"):
            columns = _integers(graph, step.input[1])[-1]
        elif columns and (step.op_type != "Slice" or len(step.input) < 4):
            break
        elif columns:
            columns = _integers(graph, step.input[2])[-1]
        end = step
    if columns <= 0:
        return
    rest = [name for name in _row_tables(graph, end.output[0], ids) if name != codes]
    rest += [name for name in _palettes(graph, end.output[0]) if name not in rest]
    found[codes] = _found(graph, codes, (graph.stored[codes].dims[0], columns), rest, end.output[0])
    replaced[end.output[0]] = _node(GATHER, [codes, ids, *rest], end.output[0])


def _following(graph: OnnxGraph, node: Any) -> Iterator[Any]:
    """The nodes that work on a result one after the other, as far as they may belong to the unpacking."""
    while following := graph.users.get(node.output[0]):
        node = following[0]
        if node.op_type not in _STEPS:
            return
        yield node


def _row_tables(graph: OnnxGraph, name: str, ids: str) -> list[str]:
    """What is gathered by the same ids: codes, scales, zero points."""
    names, stack = [], [name]
    while stack:
        node = graph.producer.get(stack.pop())
        if node is None:
            continue
        if node.op_type == "Gather" and node.input[1] == ids and node.input[0] in graph.stored:
            names.append(node.input[0])
        else:
            stack.extend(reversed(node.input))
    return list(dict.fromkeys(names))


def _join_weight(graph: OnnxGraph, name: str, found: dict[str, Found], replaced: dict[str, Any]) -> None:
    if name in graph.stored:
        return
    leaves = list(graph.leaves(name))
    codes = [leaf for leaf in leaves if _is_codes(graph, leaf)]
    shape = _shape(graph, name)
    if len(codes) != 1 or not shape or name in replaced:
        return
    rows = graph.stored[codes[0]].dims[0]
    rest = [leaf for leaf in leaves if leaf != codes[0] and _of_rows(graph.stored[leaf], rows)]
    if rest:
        rest += _palettes(graph, name)
        found[codes[0]] = _found(graph, codes[0], shape, rest, name)
        replaced[name] = _node(WEIGHT, [codes[0], *rest], name)


def _of_rows(tensor: Any, rows: int) -> bool:
    return len(tensor.dims) == 2 and tensor.dims[0] == rows and tensor.data_type in (1, 2, 10)  # float, uint8, half


def _palettes(graph: OnnxGraph, end: str) -> list[str]:
    """Stored levels of the weight itself, float ``(rows or 1, groups or 1, codes)``, on the way to ``end``."""
    leaves = [name for name in graph.leaves(end) if name in graph.stored]
    return [n for n in leaves if len(graph.stored[n].dims) == 3 and graph.stored[n].data_type in (1, 10)]


def _shape(graph: OnnxGraph, name: str) -> tuple[int, ...]:
    """Of a computed constant, read off the operators that shape it; empty where that can't be told."""
    node = graph.producer.get(name)
    if node is None:
        return tuple(graph.stored[name].dims) if name in graph.stored else ()
    if node.op_type == "Reshape":
        shape = tuple(_integers(graph, node.input[1]))
        return shape if all(size > 0 for size in shape) else ()
    inner = _shape(graph, node.input[0])
    if node.op_type == "Transpose":
        return inner[::-1]
    if node.op_type == "Slice" and inner:
        return (*inner[:-1], _integers(graph, node.input[2])[-1])
    return inner if node.op_type in ("Cast", "DequantizeLinear") else ()


def _found(graph: OnnxGraph, codes: str, shape: tuple[int, ...], rest: list[str], end: str) -> Found:
    rows, groups, width = graph.stored[codes].dims
    columns = math.prod(shape) // max(rows, 1)
    size = math.ceil(columns / max(groups, 1))
    fitting = [bits for bits in WIDTHS if packed_bytes(size, bits) == width]
    bits = fitting[-1] if fitting else max((b for b in BITS if b <= 8 * groups * width // max(columns, 1)), default=8)
    zeros = next((name for name in rest if graph.stored[name].data_type == 2), None)
    if palettes := _palettes(graph, end):
        bits = int(graph.stored[palettes[0]].dims[2]).bit_length() - 1
        return Found(shape, bits, PALETTES["tensor"].dtype(bits), None, zeros)
    if any(graph.stored[name].data_type != 2 and graph.stored[name].dims[1] != groups for name in rest):
        return Found(shape, bits, K_QUANT.dtype(bits), K_QUANT.zero(bits), None)
    levels = next(filter(None, (_levels(graph, name) for name in graph.leaves(end))), None)
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
