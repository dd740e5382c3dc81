"""Static int8 of an ONNX file: weights and activations, as QuantizeLinear/DequantizeLinear pairs.

onnxruntime's quantizer places the pairs. What is added here: ranges of our own with bounded memory (``calibrate.py``,
``ranges.py``), silence, a fallback where its pre-processing fails (it does on most transformers), cheaper operators
around the pairs, 8-bit embeddings, and a coverage list.

Networks of convolutions run on integers from end to end: every operator's output is quantized. In models with attention
only the inputs of matrix products are, each once. Their sums, normalizations, activation functions and attention itself
stay in float: these lose most to rounding, and gain least from integers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from compresskit.errors import InputError
from compresskit.exporter.calibrate import collect
from compresskit.exporter.embedding import quantize_embeddings
from compresskit.exporter.qdq import after, coverage
from compresskit.exporter.quiet import quiet
from compresskit.exporter.ranges import PERCENTILE, Histogram, Method, find_range
from compresskit.exporter.ready import explained, prepared
from compresskit.exporter.rounding import add_sqnr
from compresskit.exporter.slim import DATA_ABOVE
from compresskit.model import InputSpec
from compresskit.stage import Progress, silent

_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_AROUND = (
    *("Add", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Pad", "Slice"),
    *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Split", "Resize"),
)
_EMBEDDING = "Gather"
_ATTENTION = {"LayerNormalization", "Attention", "RMSNormalization", "SimplifiedLayerNormalization"}
_BETWEEN = ("Where", "Cast", "Mul", "Reshape", "Transpose", "Identity", "Dropout")


_INFINITE = "its input or output is not finite on the calibration data"
_GROUPED = "a grouped convolution of few channels a group: onnxruntime has no fast 8-bit kernel for it, float is faster"
_FEW = 32
"""Channels of a group from which on 8 bits are faster than float: with 32 by 1.7×, with 16 slower by 1.2×, with one
channel and two outputs slower by 12×. With one of each there is a kernel of its own."""


@dataclass(frozen=True)
class Int8Settings:
    """How weights and activations become 8 bits.

    Attributes:
        per_channel: One scale for each output channel of a weight, else one for the weight.
        activation: Type of activations; ``uint8`` with ``int8`` weights is the fast pair on x86.
        weight: Type of weights.
        reduce_range: 7-bit weights: on x86 without VNNI the 8-bit products of uint8 and int8 can saturate.
        symmetric: Activations without zero points, as GPUs want them.
        method: How a range follows from the values seen.
        percentile: Of the values that a range holds, in percent, for that method.
        op_types: Operators to quantize; by default all that gain, and in models with attention only
            embeddings and the matrix products with a weight.
    """

    per_channel: bool = True
    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["int8", "uint8"] = "int8"
    reduce_range: bool = False
    symmetric: bool = False
    method: Method = "minmax"
    percentile: float = PERCENTILE
    op_types: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Operators:
    """What is quantized of a model.

    Attributes:
        kinds: Operators.
        outputs: Quantize what operators give too, not what they take alone.
    """

    kinds: tuple[str, ...]
    outputs: bool

    @classmethod
    def of(cls, path: Path, asked: tuple[str, ...] | None) -> _Operators:
        """Those that were asked for, else all that gain in this model."""
        attention = _has_attention(path)
        return cls(asked or (*_HEAVY, *(() if attention else _AROUND), _EMBEDDING), not attention)

    @property
    def multiplied(self) -> list[str]:
        """Without embeddings, whose rows are looked up."""
        return [kind for kind in self.kinds if kind != _EMBEDDING]

    def nodes(self, model: onnx.ModelProto) -> list[onnx.NodeProto]:
        """The nodes to quantize: of the matrix products those with a weight."""
        stored = {tensor.name for tensor in model.graph.initializer}
        named = [node for node in model.graph.node if node.op_type in self.multiplied]
        return [node for node in named if node.op_type != "MatMul" or stored & {*node.input}]

    def activations(self, model: onnx.ModelProto) -> list[str]:
        """The tensors that need a range."""
        stored = {"", *(tensor.name for tensor in model.graph.initializer)}
        ends = ((*node.input, *(node.output if self.outputs else ())) for node in self.nodes(model))
        return list(dict.fromkeys(name for names in ends for name in names if name not in stored))


def quantize_static_int8(
    fp32_onnx: Path,
    out: Path,
    batches: Iterable[dict[str, np.ndarray]],
    settings: Int8Settings = Int8Settings(),
    *,
    inputs: tuple[InputSpec, ...] = (),
    data_above: int = DATA_ABOVE,
    threads: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Quantize weights and activations to 8 bits with ranges taken from calibration data.

    Args:
        fp32_onnx: The float model; not changed.
        out: The file to write.
        batches: Calibration inputs by name, a row a sample; walked once, one batch in memory at a time.
        settings: Form of the codes, ranges and layers; see :class:`Int8Settings`.
        inputs: What is known of the model's inputs: where one has its batch axis.
        data_above: Bytes of weights from which on they go to ``<name>.data``.
        threads: Of one operator while calibrating; 0 is onnxruntime's choice.
        progress: Told of the batches and steps.

    Returns:
        Facts: ``layers`` (weight name to operator, bits, number of scales and SQNR in dB), ``skipped`` (weight name to
        the reason), ``notes`` (what was changed of the float model), ``samples``, ``tensors`` (activations quantized),
        ``method``, ``activation``, ``weight``, ``per_channel``, ``op_types``.

    Raises:
        InputError: The model can't be read or quantized, or the calibration data don't fit it or are empty.
        MachineError: Disk or memory ran out.
    """
    with quiet(), tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        with explained(fp32_onnx, "`method` int8-dynamic quantizes matrix products without calibration"):
            ready = prepared(fp32_onnx, Path(work))
            operators = _Operators.of(ready.path, settings.op_types)
            graph = ready.named()
            tensors, counts = operators.activations(graph), settings.method != "minmax"
            seen, samples = collect(
                ready.path, tensors, batches, inputs=inputs, counts=counts, threads=threads, progress=progress
            )
            left = _place_pairs(graph, seen, operators, settings, Path(work) / "int8.onnx", large=ready.large)
            model = ir.load(Path(work) / "int8.onnx")
        after(model)
        tables, kept = quantize_embeddings(model) if _EMBEDDING in operators.kinds else ({}, {})
        layers, skipped, activations = coverage(model, operators.kinds)
        layers, skipped = {**tables, **layers}, {**skipped, **left, **kept}
        if not layers:
            raise InputError(f"nothing in {fp32_onnx.name} could be quantized to int8: {_why(skipped)}")
        add_sqnr(layers, model, ready.path)
        ready.write(model, out, data_above)
    return {
        "layers": ready.as_came(layers),
        "skipped": ready.as_came(skipped),
        "notes": ready.notes,
        "samples": samples,
        "tensors": activations,
        "op_types": list(operators.kinds),
        "method": settings.method,
        "activation": settings.activation,
        "weight": settings.weight,
        "per_channel": settings.per_channel,
    }


def _has_attention(path: Path) -> bool:
    """True with layer normalization, or with a softmax that a matrix product reads; one at the end doesn't count."""
    nodes = list(ir.load(path).graph.all_nodes())
    return any(n.op_type in _ATTENTION or (n.op_type == "Softmax" and _multiplies(n, 4)) for n in nodes)


def _multiplies(node: ir.Node, steps: int) -> bool:
    following = [use.node for use in node.outputs[0].uses()]
    return any(
        n.op_type == "MatMul" or (steps and n.op_type in _BETWEEN and _multiplies(n, steps - 1)) for n in following
    )


def _place_pairs(
    model: onnx.ModelProto,
    seen: dict[str, Histogram],
    operators: _Operators,
    settings: Int8Settings,
    out: Path,
    *,
    large: bool,
) -> dict[str, str]:
    """Write the model with QuantizeLinear and DequantizeLinear; returns the weights left out, with the reason."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ranges = {name: _ends(values, settings) for name, values in seen.items()}
    broken = {name for name, values in seen.items() if not values.finite}
    chosen = operators.nodes(model)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    left = {node.name: _INFINITE for node in chosen if broken & {*node.input, *node.output}}
    if settings.op_types is None and not settings.symmetric:
        left |= {node.name: _GROUPED for node in chosen if _slow_groups(node, shapes)}
    skipped = {name: left[node.name] for node in chosen if node.name in left for name in node.input if name in shapes}
    wanted = {node.name for node in chosen} - left.keys()
    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    # A float bias is what onnxruntime makes an int32 of at load; stored as int32 it needs a scale for each channel too.
    options = {
        "QuantizeBias": False,
        "WeightSymmetric": settings.weight == "int8",
        "ActivationSymmetric": settings.symmetric,
        "OpTypesToExcludeOutputQuantization": [] if operators.outputs else list(operators.kinds),
    }
    quantizer = QDQQuantizer(
        model,
        settings.per_channel,
        settings.reduce_range,
        types[settings.weight],
        types[settings.activation],
        TensorsData(CalibrationMethod.MinMax, ranges),
        [],
        [node.name for node in model.graph.node if node.name not in wanted],
        operators.multiplied,
        options,
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(out), large)
    return skipped


def _slow_groups(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a node is a grouped convolution that onnxruntime's kernels are slow with in 8 bits."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    shape = shapes.get(node.input[1], ()) if node.op_type == "Conv" else ()
    if groups == 1 or len(shape) < 3:
        return False
    own = shape[1], shape[0] // groups
    return own != (1, 1) and min(own) < _FEW


def _ends(values: Histogram, settings: Int8Settings) -> tuple[np.ndarray, ...]:
    return tuple(np.array(end, np.float32) for end in find_range(values, settings.method, settings.percentile))


def _why(skipped: dict[str, str]) -> str:
    """The reason given most often."""
    reasons = list(skipped.values())
    return max(reasons, key=reasons.count) if reasons else "it has no weights"
