"""Embedding tables as 8-bit rows with a scale each, in operators that every runtime has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from compresskit.exporter.graph import added, constant, replace
from compresskit.ops.onnx_names import CODES, SCALE

_MIN_COLUMNS = 8  # below that the scales outweigh what the codes save


def quantize_embeddings(model: ir.Model) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Store the tables that are only looked up by row as int8, in place: ``Gather(codes) · Gather(scales)``.

    Only the rows asked for are dequantized. Rounding is symmetric, to the largest magnitude of a row.

    Returns:
        The tables by name with what they got, and those left alone with the reason.
    """
    done: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    codes_of: dict[str, tuple[ir.Value, ir.Value]] = {}
    for node in list(model.graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        array = constant(table)
        if table is None or array is None or not _is_table(node, array):
            continue
        name = str(table.name)
        if any(use.node.op_type != "Gather" for use in table.uses()) and name not in codes_of:
            skipped[name] = "an embedding that another operator reads too"
            continue
        if name not in codes_of:
            codes_of[name] = _stored(model.graph, name, array)
            done[name] = {"kind": "Embedding", "bits": 8, "scales": len(array)}
        _look_up(node, *codes_of[name])
    return done, skipped


def _is_table(node: ir.Node, array: np.ndarray) -> bool:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return axis == 0 and array.dtype == np.float32 and array.ndim == 2 and array.shape[1] >= _MIN_COLUMNS


def _stored(graph: ir.Graph, name: str, array: np.ndarray) -> tuple[ir.Value, ir.Value]:
    top = np.abs(array).max(1, keepdims=True)
    scales = (np.where(top > 0, top, 1) / 127).astype(np.float32)
    codes = np.clip(np.round(array / scales), -127, 127).astype(np.int8)
    return added(graph, codes, f"{name}{CODES}"), added(graph, scales, f"{name}{SCALE}")


def _look_up(node: ir.Node, codes: ir.Value, scales: ir.Value) -> None:
    rows = ir.node("Gather", [codes, node.inputs[1]])
    numbers = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
    steps = ir.node("Gather", [scales, node.inputs[1]])
    product = ir.node("Mul", [numbers.outputs[0], steps.outputs[0]])
    replace(node, product.outputs[0], [rows, numbers, steps, product])
