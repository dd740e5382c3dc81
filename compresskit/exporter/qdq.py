"""Edits around quantized operators: what onnxruntime's own rewrites miss, and what was quantized in the end."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compresskit.exporter.attention import tidy_attention
from compresskit.exporter.graph import added, constant, made_by, only_user, replace
from compresskit.exporter.slim import merge
from compresskit.ops.onnx_names import CODES, TRANSPOSED

_NUMBERED = re.compile(r"v[0-9a-z]+(_transposed)?$")


def before(model: ir.Model) -> None:
    """On the float graph: join strided slices, write spatial means as int8 pooling wants them, tidy attention."""
    merge(model)
    tidy_attention(model)
    for node in list(model.graph):
        if node.op_type == "Slice":
            _join_slices(model.graph, node)
        elif node.op_type == "ReduceMean":
            _mean_to_pool(model.graph, node)
    common.RemoveUnusedNodesPass()(model)
    _name_weights(model.graph)


def after(model: ir.Model) -> None:
    """On the quantized graph: padding with zeros works on the codes themselves, at the scale of its input."""
    for node in list(model.graph):
        if node.op_type == "Pad":
            _pad_codes(model.graph, node)
    common.RemoveUnusedNodesPass()(model)


def _name_weights(graph: ir.Graph) -> None:
    """Weights that the exporter transposed have lost their name: their layer's is that of the bias added next."""
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        add = only_user(node, "Add")
        if weight is None or weight.const_value is None or add is None or not _NUMBERED.match(str(weight.name)):
            continue
        stored = [v for v in add.inputs if v is not None and v.const_value is not None]
        bias = str(stored[0].name) if stored and len(stored[0].uses()) == 1 else ""  # equal biases are stored once
        name = f"{bias.removesuffix('.bias')}.weight"
        if bias.endswith(".bias") and name not in graph.initializers:
            ir.convenience.rename_values([weight], [name])


def _join_slices(graph: ir.Graph, node: ir.Node) -> None:
    """``Slice(Slice(x))`` over different axes as one."""
    first = made_by(node.inputs[0], "Slice")
    if first is None or only_user(first, "Slice") is not node or len(node.inputs) != 5:
        return
    parts = [(constant(a), constant(b)) for a, b in zip(first.inputs[1:], node.inputs[1:], strict=False)]
    joined = [np.concatenate([a, b]) for a, b in parts if a is not None and b is not None]
    if len(joined) != 4 or len(set(joined[2].tolist())) < len(joined[2]) or (joined[2] < 0).any():
        return
    node.replace_input_with(0, first.inputs[0])
    for index, array in enumerate(joined, 1):
        node.replace_input_with(index, added(graph, array, f"{node.outputs[0].name}:slice{index}"))


def _mean_to_pool(graph: ir.Graph, node: ir.Node) -> None:
    """``ReduceMean`` over the two last of four axes as ``GlobalAveragePool``."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or sorted(axes.reshape(-1).tolist()) not in ([2, 3], [-2, -1]):
        return
    value = node.inputs[0]
    made = _producer_of_images(value)
    keep = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    if not made:
        return
    pool = ir.node("GlobalAveragePool", [value])
    out, new = pool.outputs[0], [pool]
    if not keep:
        squeeze = ir.node("Squeeze", [out, added(graph, np.array([2, 3]), f"{node.outputs[0].name}:axes")])
        out, new = squeeze.outputs[0], [pool, squeeze]
    replace(node, out, new)


def _producer_of_images(value: ir.Value | None) -> bool:
    """True when the tensor surely has four axes: it comes from a 2-d convolution through elementwise operators."""
    for _ in range(8):
        node = value.producer() if value is not None else None
        if node is None:
            return False
        if node.op_type == "Conv":
            weight = node.inputs[1]
            return weight is not None and weight.shape is not None and len(weight.shape) == 4
        if node.op_type not in ("Relu", "Add", "BatchNormalization", "Clip", "LeakyRelu", "MaxPool", "AveragePool"):
            return False
        value = node.inputs[0]
    return False


def _pad_codes(graph: ir.Graph, node: ir.Node) -> None:
    """``Dequantize → Pad(0) → Quantize → Dequantize`` as a Pad of codes, filled with the zero point.

    The range of the padded tensor is that of its input, which holds zero in any case: nothing is clipped.
    """
    source, quantize = made_by(node.inputs[0], "DequantizeLinear"), only_user(node, "QuantizeLinear")
    if source is None or quantize is None or not _fills_zeros(node):
        return
    if len(source.inputs) < 3 or constant(source.inputs[2]) is None:
        return
    uses = [use.node for use in quantize.outputs[0].uses()]
    if any(use.op_type != "DequantizeLinear" for use in uses):
        return
    scale, zero = source.inputs[1], source.inputs[2]
    pad = ir.node("Pad", [source.inputs[0], node.inputs[1], zero, *node.inputs[3:]], node.attributes)
    for use in uses:
        use.replace_input_with(1, scale)
        use.replace_input_with(2, zero)
    graph.insert_before(quantize, [pad])
    quantize.outputs[0].replace_all_uses_with(pad.outputs[0])


def _fills_zeros(pad: ir.Node) -> bool:
    fill = constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
    return pad.attributes.get_string("mode", "constant") == "constant" and (fill is None or not np.any(fill))


def coverage(model: ir.Model, kinds: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """(weight to what it got, weight to why it was left alone, activations that were quantized)."""
    done: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    activations = 0
    for node in model.graph.all_nodes():
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            activations += node.op_type == "QuantizeLinear"
            continue
        for value in node.inputs:
            maker = made_by(value, "DequantizeLinear")
            codes = maker.inputs[0] if maker is not None else None
            if maker is not None and codes is not None and codes.const_value is not None:
                scales = constant(maker.inputs[1])
                found = {"kind": node.op_type, "bits": 8, "scales": 1 if scales is None else scales.size}
                done[plain_name(codes.name)] = found
            elif value is not None and is_weight(value):
                skipped[plain_name(value.name)] = _reason(node, kinds)
        if is_weightless(node):
            skipped[f"MatMul {node.outputs[0].name}"] = WEIGHTLESS
    return done, skipped, activations


WEIGHTLESS = "a product of two activations: no weight in it"


def is_weightless(node: ir.Node) -> bool:
    """True for a matrix product of two activations."""
    return node.op_type == "MatMul" and not any(value is not None and weighs(value) for value in node.inputs)


def is_weight(value: ir.Value) -> bool:
    """A stored float matrix or larger; not a bias or a constant of the arithmetic."""
    tensor = value.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and sum(d > 1 for d in tensor.shape.numpy()) > 1


def weighs(value: ir.Value) -> bool:
    """True for what is stored, or dequantized from something stored."""
    maker = value.producer()
    stored = value.const_value is not None
    return stored or (maker is not None and maker.inputs[0] is not None and maker.inputs[0].const_value is not None)


def _reason(node: ir.Node, kinds: tuple[str, ...]) -> str:
    if node.op_type in kinds:
        return "onnxruntime's quantizer left it in float"
    elsewhere = "; `method` int8-dynamic quantizes it" if node.op_type == "LSTM" else ""
    return f"{node.op_type} is not among the operators to quantize{elsewhere}"


def plain_name(name: str | None) -> str:
    """A weight's name as it was before the tools added to it."""
    text = str(name or "").removesuffix(CODES).removesuffix(TRANSPOSED)
    for prefix in ("ConvBnFusion_W_", "ConvBnFusion_BN_B_", "ConvMulFusion_W_", "ConvAddFusion_B_"):
        text = text.removeprefix(prefix)
    return text
