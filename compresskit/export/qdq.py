"""Edits around quantized operators: what onnxruntime's own rewrites miss, and what was quantized in the end."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compresskit.export.attention import tidy_attention
from compresskit.export.graph import added, constant, replace
from compresskit.export.slim import merge
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
        uses = [use.node for use in node.outputs[0].uses()]
        if weight is None or not _NUMBERED.match(str(weight.name)) or len(uses) != 1 or uses[0].op_type != "Add":
            continue
        stored = [v for v in uses[0].inputs if v is not None and v.const_value is not None]
        bias = str(stored[0].name) if stored and len(stored[0].uses()) == 1 else ""  # equal biases are stored once
        name = f"{bias.removesuffix('.bias')}.weight"
        if bias.endswith(".bias") and weight.const_value is not None and name not in graph.initializers:
            ir.convenience.rename_values([weight], [name])


def _join_slices(graph: ir.Graph, node: ir.Node) -> None:
    """``Slice(Slice(x))`` over different axes as one."""
    value = node.inputs[0]
    first = value.producer() if value is not None else None
    if first is None or first.op_type != "Slice" or len(first.outputs[0].uses()) != 1 or len(node.inputs) != 5:
        return
    parts = [(constant(a), constant(b)) for a, b in zip(first.inputs[1:], node.inputs[1:], strict=False)]
    if len(parts) != 4 or any(a is None or b is None for a, b in parts):
        return
    joined = [np.concatenate([a, b]) for a, b in parts if a is not None and b is not None]
    if len(set(joined[2].tolist())) < len(joined[2]) or (joined[2] < 0).any():
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
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    uses = [use.node for use in node.outputs[0].uses()]
    if source is None or source.op_type != "DequantizeLinear" or len(uses) != 1 or uses[0].op_type != "QuantizeLinear":
        return
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    fill = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if mode != "constant" or (fill is not None and np.any(fill)):
        return
    if len(source.inputs) < 3 or constant(source.inputs[2]) is None:
        return
    scale, zero = source.inputs[1], source.inputs[2]
    pad = ir.node("Pad", [source.inputs[0], node.inputs[1], zero, *node.inputs[3:]], node.attributes)
    quantize = uses[0]
    for use in list(quantize.outputs[0].uses()):
        if use.node.op_type != "DequantizeLinear":
            return
    for use in list(quantize.outputs[0].uses()):
        use.node.replace_input_with(1, scale)
        use.node.replace_input_with(2, zero)
    graph.insert_before(quantize, [pad])
    quantize.outputs[0].replace_all_uses_with(pad.outputs[0])


def coverage(model: ir.Model, kinds: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """(weight to what it got, weight to why it was left alone, activations that were quantized)."""
    done: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    activations = 0
    for node in model.graph.all_nodes():
        activations += node.op_type == "QuantizeLinear"
        for value in node.inputs if node.op_type not in ("QuantizeLinear", "DequantizeLinear") else ():
            maker = value.producer() if value is not None else None
            codes = maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else None
            if maker is not None and codes is not None and codes.const_value is not None:
                scales = constant(maker.inputs[1])
                done[plain_name(codes.name)] = {
                    "kind": node.op_type,
                    "bits": 8,
                    "scales": 1 if scales is None else scales.size,
                }
            elif value is not None and is_weight(value):
                skipped[plain_name(value.name)] = _reason(node, kinds)
        if node.op_type == "MatMul" and not any(v is not None and weighs(v) for v in node.inputs):
            skipped[f"MatMul {node.outputs[0].name}"] = "a product of two activations: no weight in it"
    return done, skipped, activations


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
    return f"{node.op_type} is not among the operators to quantize"


def plain_name(name: str | None) -> str:
    """A weight's name as it was before the tools added to it."""
    text = str(name or "").removesuffix(CODES).removesuffix(TRANSPOSED)
    for prefix in ("ConvBnFusion_W_", "ConvBnFusion_BN_B_", "ConvMulFusion_W_", "ConvAddFusion_B_"):
        text = text.removeprefix(prefix)
    return text
