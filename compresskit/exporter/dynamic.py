"""Dynamic int8 of an ONNX file: stored weights in 8 bit, activations rounded while the model runs, no data needed.

Each matrix product takes its input through DynamicQuantizeLinear (uint8, one scale for the tensor, found on the spot)
into MatMulInteger; an LSTM becomes onnxruntime's DynamicQuantizeLSTM (2 to 5 times faster than in float, measured with
128 to 512 units). Convolutions stay in float: their dynamic form is slower than float on CPUs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from compresskit.errors import InputError
from compresskit.exporter.embedding import quantize_embeddings
from compresskit.exporter.graph import constant
from compresskit.exporter.qdq import WEIGHTLESS, is_weight, is_weightless, plain_name
from compresskit.exporter.quiet import quiet
from compresskit.exporter.ready import Ready, explained, prepared
from compresskit.exporter.rounding import add_sqnr
from compresskit.exporter.slim import DATA_ABOVE
from compresskit.ops.onnx_names import CODES, SCALE
from compresskit.stage import Progress, silent

_KINDS = ("MatMul", "Gemm", "Attention", "LSTM")
_CODES_AT = {"MatMulInteger": (1,), "QAttention": (1,), "DynamicQuantizeLSTM": (1, 2)}
_KIND = {"QAttention": "Attention", "DynamicQuantizeLSTM": "LSTM"}
_REASONS = {
    "Conv": "a convolution with dynamic 8-bit inputs is slower than in float; int8-static quantizes it",
    "ConvTranspose": "has no dynamic 8-bit form; int8-static quantizes it",
    "GRU": "a GRU stays in float: onnxruntime has no 8-bit form of it",
    "RNN": "an RNN stays in float: onnxruntime has no 8-bit form of it",
    "LSTM": "an LSTM whose weights are computed, or whose batch comes first, stays in float",
}


def quantize_dynamic_int8(
    fp32_onnx: Path,
    out: Path,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    data_above: int = DATA_ABOVE,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Quantize the weights of matrix products and embeddings to int8; activations follow at run time.

    Args:
        fp32_onnx: The float model; not changed.
        out: The file to write.
        per_channel: One scale for each output channel of a weight, else one for the weight.
        reduce_range: 7-bit weights, for x86 without VNNI.
        data_above: Bytes of weights from which on they go to ``<name>.data``.
        progress: Told of the steps.

    Returns:
        Facts: ``layers`` (weight name to operator, bits, number of scales and SQNR in dB), ``skipped`` (weight name
        to the reason) and ``notes`` (what was changed of the float model).

    Raises:
        InputError: The model can't be read or quantized, or has no matrix product with a weight.
        MachineError: Disk or memory ran out.
    """
    progress("quantize", 0, 2)
    with quiet(), tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        work = Path(folder)
        with explained(fp32_onnx, "`method` int8-static may take it"):
            ready = prepared(fp32_onnx, work)
            _dynamic(ready, per_channel, reduce_range, work / "int8.onnx")
            model = ir.load(work / "int8.onnx")
        progress("quantize", 1, 2)
        tables, kept = quantize_embeddings(model)
        layers, skipped = _coverage(model)
        layers = {**tables, **layers}
        if not layers:
            found = "no matrix product has a stored weight"
            if reasons := [reason for reason in skipped.values() if reason != WEIGHTLESS]:
                found += f"; {max(reasons, key=reasons.count)}"
            raise InputError(f"nothing in {fp32_onnx.name} gains from dynamic int8: {found}")
        add_sqnr(layers, model, ready.path)
        ready.write(model, out, data_above)
    progress("quantize", 2, 2)
    return {
        "layers": ready.as_came(layers), "skipped": ready.as_came({**skipped, **kept}), "notes": ready.notes
    }  # fmt: skip


def _dynamic(ready: Ready, per_channel: bool, reduce_range: bool, out: Path) -> None:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    model = ready.named()
    quantizer = ONNXQuantizer(
        model,
        per_channel,
        reduce_range,
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        [],
        [node.name for node in model.graph.node if node.op_type == "LSTM" and _batch_first(node)],
        [kind for kind in _KINDS if kind in IntegerOpsRegistry or kind == "Gemm"],
        {"MatMulConstBOnly": True, "WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(out), ready.large)


def _batch_first(node: onnx.NodeProto) -> bool:
    """The 8-bit LSTM has no such layout; the quantizer would drop it silently."""
    return any(attribute.name == "layout" and attribute.i for attribute in node.attribute)


def _coverage(model: ir.Model) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    done: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is None or value.const_value is None:
                continue
            if value in [node.inputs[at] for at in _CODES_AT.get(node.op_type, ())]:
                kind = _KIND.get(node.op_type, "MatMul")
                done[plain_name(value.name)] = {"kind": kind, "bits": 8, "scales": _scales(model, str(value.name))}
            elif is_weight(value) and node.op_type not in _CODES_AT:
                skipped[plain_name(value.name)] = _REASONS.get(
                    node.op_type, f"{node.op_type} has no dynamic 8-bit form"
                )
        if is_weightless(node):
            skipped[f"MatMul {node.outputs[0].name}"] = WEIGHTLESS
    return done, skipped


def _scales(model: ir.Model, codes: str) -> int:
    """Scales of a weight: the quantizer names them after it."""
    scales = constant(model.graph.initializers.get(f"{codes.removesuffix(CODES)}{SCALE}"))
    return 1 if scales is None else int(scales.size)
