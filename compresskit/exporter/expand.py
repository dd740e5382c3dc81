"""The placeholders of ``lower.py`` to operators that runtimes know, on the graph after the export.

=================  ==============================================================================================
what               becomes
=================  ==============================================================================================
Linear, 4 or 8     MatMulNBits on the codes
Linear, 2 or 3     codes unpacked to UINT4 -> DequantizeLinear -> MatMul, of which onnxruntime makes MatMulNBits
Embedding          Gather of the rows asked for, then unpacked and scaled
Weight             all rows unpacked and scaled: for convolutions, tables of levels, and whatever reads a weight
=================  ==============================================================================================

Scales stay float16 in the file with a Cast behind them, and what repeats is repeated by an Expand. All that depends on
constants alone is computed by onnxruntime and OpenVINO when they load the file: a convolution then runs as fast as in
float32. Codes that an embedding shares with the output layer are stored once. OpenVINO wants the codes and zero points
of MatMulNBits as plain constants, so nothing is computed there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from compresskit.exporter.build import FLOAT, UINT4, Builder, array
from compresskit.exporter.lower import DOMAIN
from compresskit.exporter.unpack import codes, numbers, of_tables
from compresskit.ops.packed.format import Format
from compresskit.ops.packed.formats import format_named
from compresskit.ops.packed.grid import PARTS, packed_bytes

MICROSOFT = "com.microsoft"
EXITS = "Exits"
"""The placeholder that ``branches.py`` replaces, once all others are gone."""
_INTERLEAVED = (4, 8)
"""Bits whose packing is that of MatMulNBits."""


@dataclass(frozen=True)
class _Weight:
    """A placeholder's packed weight; ``block`` is that of its product, 0 where it has none."""

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    levels: ir.Value | None
    multiples: ir.Value | None
    bits: int
    format: Format
    group: int
    block: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, node: ir.Node, multiplied: set[str | None]) -> _Weight:
        a = node.attributes
        codes, scales, zeros, levels, multiples = (*node.inputs, *[None] * len(PARTS))[: len(PARTS)]
        if codes is None or scales is None:
            raise ValueError("a placeholder without codes")
        bits, group, block = (a[name].as_int() for name in ("bits", "group", "block"))
        block = block if codes.name in multiplied else 0
        known, shape = format_named(a["format"].as_string()), tuple(a["shape"].as_ints())
        return cls(codes, scales, zeros, levels, multiples, bits, known, group, block, shape)

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def groups(self) -> int:
        return int(array(self.codes).shape[1])

    @property
    def repeat(self) -> int:
        """Blocks in a group; a group that reaches past the row is cut off at its end."""
        return -(-min(self.group, self.columns) // self.block)


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
    nodes = [n for n in graph.all_nodes() if n.domain == DOMAIN and n.op_type != EXITS]
    multiplied = {n.inputs[0].name for n in nodes if n.op_type == "Linear" and n.inputs[0] is not None}
    for node in nodes:
        build = Builder(graph, node, made)
        if node.op_type == "Floats":
            kind = node.outputs[0].dtype or ir.DataType.FLOAT
            _substitute(node, build.op("Cast", node.inputs[0], attributes={"to": int(kind)}), build.new)
            continue
        weight = _Weight.of(node, multiplied)
        if node.op_type == "Linear":
            out = _linear(build, weight, node, accuracy_level)
        elif node.op_type == "Embedding":
            out = _embedding(build, weight, node)
        else:
            out = build.once(f"{weight.codes.name}:weight", partial(_weight, build, weight))
        count[node.op_type] = count.get(node.op_type, 0) + 1
        _substitute(node, out, build.new)
    if not any(n.domain == DOMAIN for n in graph.all_nodes()):
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


def _linear(build: Builder, weight: _Weight, node: ir.Node, level: int) -> ir.Value:
    x, bias = (*node.inputs[len(PARTS) :], None)[:2]
    scales = _spread(build, weight, build.floats(weight.scales), f"{weight.scales.name}:spread")
    if weight.bits not in _INTERLEAVED:
        flat = node.outputs[0].shape is not None and len(node.outputs[0].shape) == 2
        if flat:  # else onnxruntime makes a Gemm of product and sum, one it doesn't find packed codes in
            x = build.op("Unsqueeze", x, build.integers([0]))
        out = build.op("MatMul", x, _dequantized(build, weight, scales))
        out = build.op("Squeeze", out, build.integers([0])) if flat else out
        return out if bias is None else build.op("Add", out, bias)
    attributes = {
        "K": weight.columns,
        "N": weight.rows,
        "bits": weight.bits,
        "block_size": weight.block,
        "accuracy_level": level,
    }
    inputs = [x, _stored(build, weight), scales, _zeros(build, weight), None, bias]
    return build.op("MatMulNBits", *inputs, attributes=attributes, domain=MICROSOFT)


def _dequantized(build: Builder, weight: _Weight, scales: ir.Value) -> ir.Value:
    """The weight ``(columns, rows)`` by a DequantizeLinear, from which the runtimes keep 4-bit codes in memory."""

    def make() -> ir.Value:
        rows, columns, groups, bits = weight.rows, weight.columns, weight.groups, weight.bits
        width = int(array(weight.codes).shape[2])
        found = codes(build, weight.codes, bits, [rows, groups], width, min(weight.group, columns))
        data = build.cast(build.transposed(build.reshape(found, [rows, columns])), UINT4)
        if weight.zeros is None:
            middle = build.constant(np.array([[1 << (bits - 1)]], np.uint8), f"middle:{bits}")
            points = build.op("Expand", middle, build.integers([groups * weight.repeat, rows]))
        else:
            single = codes(build, weight.zeros, bits, [rows], packed_bytes(groups, bits), groups)
            points = build.transposed(_spread(build, weight, single, f"{weight.zeros.name}:spread"))
        attributes = {"axis": 0, "block_size": weight.block}
        inputs = (data, build.transposed(scales), build.cast(points, UINT4))
        return build.op("DequantizeLinear", *inputs, attributes=attributes)

    return build.once(f"{weight.codes.name}:dequantized", make)


def _embedding(build: Builder, weight: _Weight, node: ir.Node) -> ir.Value:
    ids, shape = node.inputs[len(PARTS)], node.outputs[0].shape
    if ids is None or shape is None:
        raise ValueError("an embedding without its ids")
    data, scales = build.gather(_stored(build, weight), ids), build.gather(weight.scales, ids)
    if weight.scales.dtype != ir.DataType.FLOAT:
        scales = build.cast(scales, FLOAT)
    lead = [0] * (len(shape) - 1)
    values = _values(build, weight, data, lead, ids)
    if weight.multiples is not None:
        return _two_level(build, weight, values, scales, build.gather(weight.multiples, ids), lead, ())
    zeros = None if weight.zeros is None else build.gather(weight.zeros, ids)
    return _scaled(build, weight, values, scales, zeros, lead, ())


def _weight(build: Builder, weight: _Weight) -> ir.Value:
    scales, lead = build.floats(weight.scales), [weight.rows]
    values = _values(build, weight, _stored(build, weight), lead)
    if weight.multiples is not None:
        return _two_level(build, weight, values, scales, weight.multiples, lead, weight.shape[1:])
    return _scaled(build, weight, values, scales, weight.zeros, lead, weight.shape[1:])


def _values(build: Builder, weight: _Weight, data: ir.Value, lead: list[int], ids: ir.Value | None = None) -> ir.Value:
    """What codes stand for before zero points and scales: float32 ``(*lead, groups, size)``.

    Args:
        build: Where to put the nodes.
        weight: Which weight this is.
        data: uint8 ``(*lead, …)``.
        lead: Sizes of the first axes; 0 keeps what is there.
        ids: Which rows ``data`` holds; None for all.
    """
    groups, bits = weight.groups, weight.bits
    width = math.prod(_layout(weight)[1:]) // groups
    size = weight.group if groups > 1 else weight.columns
    of_data = partial(numbers, build, data, bits, [*lead, groups], width, size)
    if weight.levels is None:
        if weight.format.levels is None:
            return of_data()
        return of_data(build.constant(np.array(weight.format.levels, np.float32), f"levels:{weight.format.name}"))
    levels, (rows, each, count) = build.floats(weight.levels), array(weight.levels).shape
    if rows == each == 1:
        return of_data(build.once(f"{weight.levels.name}:flat", lambda: build.reshape(levels, [count])))
    if ids is not None:
        levels = build.gather(levels, ids)
    return of_tables(build, of_data(), levels, lead, (groups, size, each))


def _scaled(
    build: Builder,
    weight: _Weight,
    values: ir.Value,
    scales: ir.Value,
    zeros: ir.Value | None,
    lead: list[int],
    shape: tuple[int, ...],
) -> ir.Value:
    """``(code − zero) · scale``, or ``level · scale``, of some rows, or of all of them.

    Args:
        build: Where to put the nodes.
        weight: Which weight this is.
        values: What the codes stand for: float32 ``(*lead, groups, size)``.
        scales: float32 ``(*lead, groups)``.
        zeros: uint8 ``(*lead, bytes)``.
        lead: Sizes of the first axes; 0 keeps what is there.
        shape: The last axes of the result; empty for a single one.
    """
    groups, columns, bits = weight.groups, weight.columns, weight.bits
    size = weight.group if groups > 1 else columns
    if zeros is not None:
        points = numbers(build, zeros, bits, lead, packed_bytes(groups, bits), groups)
        values = build.op("Sub", values, build.column(points))
    elif weight.format.equal_steps:
        values = build.op("Sub", values, build.constant(np.array(1 << (bits - 1), np.float32), f"middle:float{bits}"))
    values = build.op("Mul", values, build.column(scales))
    if groups * size == columns:
        return build.reshape(values, [*lead, *(shape or (columns,))])
    values = build.first(build.reshape(values, [*lead, groups * size]), columns)
    return build.reshape(values, [*lead, *shape]) if len(shape) > 1 else values


def _two_level(
    build: Builder,
    weight: _Weight,
    values: ir.Value,
    scales: ir.Value,
    multiples: ir.Value,
    lead: list[int],
    shape: tuple[int, ...],
) -> ir.Value:
    """``code · scale − minimum``, or ``(code − middle) · scale``, as :func:`_scaled`; exact, as torch computes it.

    Args:
        build: Where to put the nodes.
        weight: Which weight this is.
        values: float32 ``(*lead, groups, size)``.
        scales: float32 ``(*lead, kinds · super-blocks)``.
        multiples: uint8 ``(*lead, bytes)``.
        lead: Sizes of the first axes; 0 keeps what is there.
        shape: The last axes of the result; empty for a single one.
    """
    two_level, groups = weight.format.two_level_of(weight.bits), weight.groups
    if two_level is None:
        raise ValueError(f"{weight.format.name} has scales in one level")
    kinds, width = two_level.kinds, packed_bytes(two_level.kinds * groups, two_level.bits)
    whole = numbers(build, multiples, two_level.bits, lead, width, kinds * groups)
    if not two_level.minima:
        half = 1 << (two_level.bits - 1)
        whole = build.op("Sub", whole, build.constant(np.array(half, np.float32), f"middle:float{two_level.bits}"))
    parts = build.reshape(whole, [*lead, kinds * groups // two_level.groups, two_level.groups])
    parts = build.reshape(build.op("Mul", parts, build.column(scales)), [*lead, kinds * groups, 1])

    def part(kind: int) -> ir.Value:
        if kinds == 1:
            return parts
        ends = (build.integers([n]) for n in (kind * groups, (kind + 1) * groups, -2))
        return build.op("Slice", parts, *ends)

    if not two_level.minima:
        middle = np.array(weight.format.zero(weight.bits), np.float32)
        values = build.op("Sub", values, build.constant(middle, f"middle:float{weight.bits}"))
    values = build.op("Mul", values, part(0))
    if two_level.minima:
        values = build.op("Sub", values, part(1))
    return build.reshape(values, [*lead, *(shape or (weight.columns,))])


def _layout(weight: _Weight) -> tuple[int, int, int]:
    """(rows, blocks or groups, bytes of each) of the stored codes."""
    if weight.block and weight.bits in _INTERLEAVED:
        return weight.rows, weight.groups * weight.repeat, weight.block * weight.bits // 8
    rows, groups, width = array(weight.codes).shape
    return int(rows), int(groups), int(width)


def _stored(build: Builder, weight: _Weight) -> ir.Value:
    """uint8: the packed codes; those of MatMulNBits with the end of a row padded to whole blocks."""
    layout, packed = _layout(weight), array(weight.codes)
    if packed.shape == layout:
        return weight.codes
    width = layout[1] * layout[2] // weight.groups
    if width > packed.shape[2]:
        packed = np.pad(packed, ((0, 0), (0, 0), (0, width - packed.shape[2])))
    return build.constant(np.ascontiguousarray(packed[:, :, :width]).reshape(layout), f"{weight.codes.name}:blocks")


def _spread(build: Builder, weight: _Weight, value: ir.Value, key: str) -> ir.Value:
    """Each column as often as its group has blocks: ``(rows, groups)`` to ``(rows, blocks)``."""
    rows, groups, repeat = weight.rows, weight.groups, weight.repeat

    def make() -> ir.Value:
        wide = build.op("Expand", build.column(value), build.integers([rows, groups, repeat]))
        return build.reshape(wide, [rows, groups * repeat])

    return value if repeat == 1 else build.once(key, make)


def _zeros(build: Builder, weight: _Weight) -> ir.Value | None:
    """Packed zero points, one for each block."""
    if weight.zeros is None or weight.repeat == 1:
        return weight.zeros
    packed = array(weight.zeros)
    if weight.bits == 4:
        packed = np.stack([packed & 15, packed >> 4], -1).reshape(weight.rows, -1)
    spread = np.repeat(packed[:, : weight.groups], weight.repeat, 1)
    if weight.bits == 4:
        spread = np.pad(spread, ((0, 0), (0, spread.shape[1] % 2)))
        spread = spread[:, 0::2] | spread[:, 1::2] << 4
    return build.constant(np.ascontiguousarray(spread), f"{weight.zeros.name}:blocks")
