"""How near the 8-bit weights of a file are to the floats that they were rounded from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from compresskit.exporter.graph import constant
from compresskit.exporter.qdq import plain_name
from compresskit.ops.onnx_names import SCALE, TRANSPOSED, ZERO_POINT, coded
from compresskit.quality.decibel import decibels


def add_sqnr(layers: dict[str, dict[str, Any]], model: ir.Model, floats: Path) -> None:
    """Note for each layer the power of its weight over that of the rounding error: ``sqnr`` in dB, at most 200.

    A weight that isn't found by its name in the float file gets no figure.

    Args:
        layers: Facts by the weight's name; changed in place.
        model: With the codes.
        floats: The float file that was quantized.
    """
    stored, original = model.graph.initializers, ir.load(floats).graph.initializers
    for codes in stored.values():
        base, layer = coded(str(codes.name)), layers.get(plain_name(codes.name))
        if layer is None or base is None:
            continue
        weight, found, scale = _weight(original, base), constant(codes), constant(stored.get(f"{base}{SCALE}"))
        if weight is None or found is None or scale is None:
            continue
        axis = _axis(codes)
        if axis is None:  # an LSTM's codes are turned over
            found = found.swapaxes(1, 2)
        if weight.shape != found.shape:
            continue
        found, zero = found.astype(np.float32), constant(stored.get(f"{base}{ZERO_POINT}"))
        if zero is not None:
            found -= _along(zero.astype(np.float32), found.ndim, axis)
        found *= _along(scale, found.ndim, axis)
        found -= weight
        layer["sqnr"] = round(decibels(float(np.vdot(weight, weight)), float(np.vdot(found, found))), 1)


def _weight(original: Any, base: str) -> np.ndarray | None:
    """The float weight; the quantizer turns the one of a Gemm over where that has to be."""
    if base in original:
        return constant(original[base])
    turned = constant(original.get(base.removesuffix(TRANSPOSED)))
    return None if turned is None or turned.ndim != 2 else turned.T


def _axis(codes: ir.Value) -> int | None:
    """The axis that a vector of scales belongs to: DequantizeLinear tells it, an integer product has it at the end.

    None for an LSTM, whose scales are ``(directions, outputs)`` or ``(directions,)``.
    """
    for use in codes.uses():
        if use.node.op_type == "DynamicQuantizeLSTM":
            return None
        if use.node.op_type == "DequantizeLinear":
            return use.node.attributes["axis"].as_int() if "axis" in use.node.attributes else 1
    return -1


def _along(values: np.ndarray, dimensions: int, axis: int | None) -> np.ndarray:
    """What has one number for all, one for each place of the axis, or all dimensions already, to be broadcast."""
    if values.ndim == dimensions or values.size == 1:
        return values
    if axis is None:
        return values.reshape(*values.shape, *[1] * (dimensions - values.ndim))
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)
