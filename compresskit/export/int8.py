"""Static int8 of an ONNX file: weights and activations, as QuantizeLinear/DequantizeLinear pairs.

onnxruntime's quantizer computes ranges and places the pairs; what is added here is bounded memory, silence, a fallback
where its pre-processing fails (it does on most transformers), cheaper operators around the pairs, and a coverage list.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from compresskit.errors import InputError, MachineError
from compresskit.export.qdq import after, before, coverage
from compresskit.export.quiet import first_line, quiet
from compresskit.export.slim import DATA_ABOVE, save, slim
from compresskit.stage import Progress, silent

Method = Literal["minmax", "percentile", "entropy"]
_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_AROUND = (
    *("Add", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Pad", "Slice"),
    *("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Split", "Resize"),
)
_ATTENTION = {"Softmax", "LayerNormalization", "Attention", "RMSNormalization"}


def quantize_static_int8(
    fp32_onnx: Path,
    out: Path,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    per_channel: bool = True,
    activation: Literal["uint8", "int8"] = "uint8",
    weight: Literal["int8", "uint8"] = "int8",
    reduce_range: bool = False,
    method: Method = "minmax",
    op_types: tuple[str, ...] | None = None,
    data_above: int = DATA_ABOVE,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Quantize weights and activations to 8 bits with ranges taken from calibration data.

    Args:
        fp32_onnx: The float model; not changed.
        out: The file to write.
        batches: Calibration inputs by name; walked once, one batch in memory at a time.
        per_channel: One scale for each output channel of a weight, else one for the weight.
        activation: ``uint8`` with ``int8`` weights is the fast pair on x86.
        weight: Type of weights.
        reduce_range: 7-bit weights: on x86 without VNNI the 8-bit products of uint8 and int8 can saturate.
        method: How a range follows from the values seen.
        op_types: Operators to quantize; by default all that gain, and in models with attention only
            embeddings and the matrix products with a weight, because normalization and softmax lose too much.
        data_above: Bytes of weights from which on they go to ``<name>.data``.
        progress: Told of the batches and steps.

    Returns:
        Facts: ``layers`` (weight name to operator, bits and number of scales), ``skipped`` (weight name to the
        reason), ``samples``, ``tensors`` (activations quantized), ``method``, ``activation``, ``weight``,
        ``per_channel``, ``op_types``.

    Raises:
        InputError: The model can't be read or quantized, or the calibration data don't fit it or are empty.
        MachineError: Disk or memory ran out.
    """
    with quiet(), tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        try:
            ready = _prepared(fp32_onnx, Path(work))
            kinds = op_types or _default_ops(ready)
            ranges, samples = _calibrated(ready, Path(work), kinds, method, batches, progress)
            if not samples:
                raise InputError("the calibration data are empty", "give at least a few dozen samples with --data")
            _quantize(ready, ranges, kinds, per_channel, activation, weight, reduce_range, Path(work) / "int8.onnx")
            model = ir.load(Path(work) / "int8.onnx")
        except (InputError, MachineError):
            raise
        except (MemoryError, OSError) as error:
            raise MachineError(
                f"int8 quantization stopped: {first_line(error)}", "free memory or disk space"
            ) from error
        except Exception as error:  # the quantizer raises whatever it likes
            raise InputError(
                f"{fp32_onnx.name} can't be quantized to int8: {first_line(error)}",
                "try weight-only quantization, which needs no calibration data",
            ) from error
        after(model)
        layers, skipped, tensors = coverage(model, kinds)
        slim(model)
        save(model, out, data_above=data_above)
    if not layers:
        raise InputError(f"nothing in {fp32_onnx.name} could be quantized to int8", "try weight-only quantization")
    options = {"method": method, "activation": activation, "weight": weight, "per_channel": per_channel}
    return {
        "layers": layers,
        "skipped": skipped,
        "samples": samples,
        "tensors": tensors,
        "op_types": list(kinds),
        **options,
    }


def _prepared(source: Path, work: Path) -> Path:
    """The model with shapes inferred and batch normalization folded, as far as onnxruntime's tools manage."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = ir.load(source)
    before(model)
    plain = work / "plain.onnx"
    big = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None) > DATA_ABOVE
    save(model, plain)
    ready = work / "ready.onnx"
    # Its symbolic shape inference fails on transformers, and leaves the model in the current folder when it does.
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True, save_as_external_data=big)
        return ready
    return plain


def _default_ops(path: Path) -> tuple[str, ...]:
    found = {node.op_type for node in ir.load(path).graph.all_nodes()}
    return (*_HEAVY, "Gather") if found & _ATTENTION else (*_HEAVY, *_AROUND)


class _One:
    """A calibration reader of a single batch."""

    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        self.feeds: dict[str, np.ndarray] | None = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The batch, then None."""
        feeds, self.feeds = self.feeds, None
        return feeds

    def __iter__(self) -> _One:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        feeds = self.get_next()
        if feeds is None:
            raise StopIteration
        return feeds


def _calibrated(
    path: Path,
    work: Path,
    kinds: tuple[str, ...],
    method: Method,
    batches: Iterable[dict[str, np.ndarray]],
    progress: Progress,
) -> tuple[Any, int]:
    """Ranges of all activations, and the samples seen; memory stays that of one batch."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    known = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    calibrator = create_calibrator(
        path,
        list(kinds),
        augmented_model_path=str(work / "augmented.onnx"),
        calibrate_method=known.get(method, CalibrationMethod.Entropy),
    )
    names = {value.name for value in calibrator.infer_session.get_inputs()}
    samples = 0
    with contextlib.redirect_stdout(io.StringIO()):
        for count, feeds in enumerate(batches, 1):
            if missing := sorted(names - feeds.keys()):
                raise InputError(
                    f"the calibration data lack the model's input '{missing[0]}'", "name the arrays as the inputs"
                )
            calibrator.collect_data(_One({k: v for k, v in feeds.items() if k in names}))
            samples += len(next(iter(feeds.values())))
            progress("calibrate", count, 0)
        if not samples:
            return None, 0
        return calibrator.compute_data(), samples


def _quantize(
    path: Path,
    ranges: Any,
    kinds: tuple[str, ...],
    per_channel: bool,
    activation: str,
    weight: str,
    reduce_range: bool,
    out: Path,
) -> None:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    types = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
    # A float bias is what onnxruntime makes an int32 of at load; stored as int32 it needs a scale for each channel too.
    options = {
        "QuantizeBias": False,
        "MatMulConstBOnly": True,
        "WeightSymmetric": weight == "int8",
    }
    quantizer = QDQQuantizer(
        load_model_with_shape_infer(path),
        per_channel,
        reduce_range,
        types[weight],
        types[activation],
        ranges,
        [],
        [],
        list(kinds),
        options,
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(out), False)
