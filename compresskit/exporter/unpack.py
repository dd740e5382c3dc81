"""Packed codes to numbers by operators, the inverse of :func:`compresskit.ops.packed.grid.pack` in a graph.

A byte is looked up in a table of the codes it holds. Onnxruntime and OpenVINO compute that at load where the bytes are
constant, and OpenVINO then still sees integers and keeps them compressed. It doesn't compute bit operators (BitShift,
BitwiseAnd) at load, and gives wrong results for some of them at run time.
"""

from __future__ import annotations

from functools import partial, reduce

import numpy as np
import onnx_ir as ir

from compresskit.exporter.build import BOOL, FLOAT, INT32, Builder, array
from compresskit.ops.packed.layout import plane_bytes, planes


def codes(build: Builder, data: ir.Value, bits: int, lead: list[int], width: int, count: int) -> ir.Value:
    """uint8 codes.

    Args:
        build: Where to put the nodes.
        data: Packed bytes: as many axes as ``lead`` has, and one of bytes.
        bits: 2 or 3.
        lead: Sizes of the result's first axes; 0 keeps the size at that place.
        width: Bytes of the last axis.
        count: Codes of the last axis of the result.
    """
    if bits == 2:
        return _plane(build, data, _table(build, 2), 2, lead, width, count)
    low, high = ((part, size) for part, size, _ in _planes(build, data, bits, width))
    wide = build.once("table:2+4", lambda: _looked_up(build, np.arange(4, 8, dtype=np.uint8), _table(build, 2)))
    flags = build.once("table:bool", lambda: build.cast(_table(build, 1), BOOL))
    small, large = (_plane(build, low[0], table, 2, lead, low[1], count) for table in (_table(build, 2), wide))
    return build.op("Where", _plane(build, high[0], flags, 1, lead, high[1], count), large, small)


def numbers(
    build: Builder,
    data: ir.Value,
    bits: int,
    lead: list[int],
    width: int,
    count: int,
    levels: ir.Value | None = None,
) -> ir.Value:
    """float32 codes, or the ``levels`` (float32, one for each code) that they stand for; as :func:`codes`.

    Takes every number of bits; ``width`` bytes may lie on more than one axis of ``data``: those that come after
    ``lead``.
    """
    if levels is not None:
        return _levels(build, data, bits, lead, width, count, levels)
    if bits == 8:
        found = build.reshape(build.cast(data, FLOAT), [*lead, width])
        return found if width == count else build.first(found, count)
    if len(planes(bits)) == 1:
        return _plane(build, data, _float_table(build, bits), bits, lead, width, count)
    shift, values = 0, []
    for part, size, plane in _planes(build, data, bits, width):
        values.append(_plane(build, part, _float_table(build, plane, shift), plane, lead, size, count))
        shift += plane
    return reduce(partial(build.op, "Add"), values)


def of_tables(
    build: Builder, data: ir.Value, tables: ir.Value, lead: list[int], shape: tuple[int, int, int]
) -> ir.Value:
    """float32 ``(*lead, groups, size)``: what codes stand for that don't share one table.

    Args:
        build: Where to put the nodes.
        data: The codes, as :func:`numbers` gives them: ``(*lead, groups, size)``.
        tables: float32 ``(*lead, 1 or groups, codes)``.
        lead: Sizes of the first axes; 0 keeps the size at that place.
        shape: Groups, size of a group, tables of a row.
    """
    groups, size, each = shape
    index = build.reshape(build.cast(data, INT32), [*lead, each, groups * size // each])
    return build.reshape(build.op("GatherElements", tables, index, attributes={"axis": -1}), [*lead, groups, size])


def _levels(
    build: Builder,
    data: ir.Value,
    bits: int,
    lead: list[int],
    width: int,
    count: int,
    levels: ir.Value,
) -> ir.Value:
    """The level of each code: a byte of whole codes at a time, else code by code."""

    def of(stored: ir.Value) -> ir.Value:
        return build.gather(levels, build.cast(stored, INT32))

    if bits == 8:
        found = build.reshape(of(data), [*lead, width])
        return found if width == count else build.first(found, count)
    if len(planes(bits)) > 1:
        return of(numbers(build, data, bits, lead, width, count))
    table = build.once(f"table:{id(levels)}:{bits}", lambda: of(_table(build, bits)))
    return _plane(build, data, table, bits, lead, width, count)


def _planes(build: Builder, data: ir.Value, bits: int, width: int) -> list[tuple[ir.Value, int, int]]:
    """The bytes of each plane of codes, with their number and the plane's width; low bits first."""
    sizes, ends = plane_bytes(width, bits), [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return [(build.first(data, ends[i] + n, ends[i]), n, planes(bits)[i]) for i, n in enumerate(sizes)]


def _plane(
    build: Builder, data: ir.Value, table: ir.Value, bits: int, lead: list[int], width: int, count: int
) -> ir.Value:
    found = build.reshape(build.gather(table, build.cast(data, INT32)), [*lead, width * 8 // bits])
    return found if width * 8 // bits == count else build.first(found, count)


def _table(build: Builder, bits: int) -> ir.Value:
    """uint8 ``(256, codes of a byte)``; the narrower ones are computed from the widest, which saves their bytes."""
    if bits == 4:
        byte = np.arange(256, dtype=np.uint8)
        return build.constant(np.stack([byte & 15, byte >> 4], 1), "table:4")

    def halved() -> ir.Value:
        wide = np.arange(1 << 2 * bits, dtype=np.uint8)
        halves = np.stack([wide & (1 << bits) - 1, wide >> bits], 1)
        return build.reshape(_looked_up(build, halves, _table(build, 2 * bits)), [256, 8 // bits])

    return build.once(f"table:{bits}", halved)


def _float_table(build: Builder, bits: int, shift: int = 0) -> ir.Value:
    """The table as float32; of codes whose lowest bit counts ``1 << shift``."""
    if not shift:
        return build.once(f"table:float{bits}", lambda: build.cast(_table(build, bits), FLOAT))
    values = np.arange(1 << bits, dtype=np.float32) * (1 << shift)
    return build.once(f"table:float{bits}<<{shift}", lambda: _looked_up(build, values, _table(build, bits)))


def _looked_up(build: Builder, values: np.ndarray, table: ir.Value) -> ir.Value:
    """Each entry of a table replaced by a row of ``values``."""
    name = f"values:{values.dtype}:{values.size}:{values.ndim}"
    while name in build.made and not np.array_equal(array(build.made[name]), values):
        name += "'"
    return build.gather(build.constant(values, name), build.cast(table, INT32))
