"""An ONNX file of any age and origin, as the 8-bit quantizers want it: float32, of an opset that has codes by channel.

Its interface stays: a graph that was in float16 or float64 takes and gives what it took and gave.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from compresskit.benchmark.feeds import make_feeds
from compresskit.checkpoint.onnx_inputs import graph_inputs
from compresskit.errors import CompressKitError, InputError
from compresskit.exporter.quiet import first_line
from compresskit.runtimes.onnxruntime import OnnxRuntime

OPSET = 13
"""The oldest in which DequantizeLinear takes a scale for each channel."""
_IR = 7
"""The IR version that came with it; from 4 on initializers need not be inputs."""
_CODED = re.compile(
    r"(Dynamic)?(Q|Deq)uantize(Linear|BFP|LSTM|MatMul)|QLinear\w+|Q(Attention|Gemm|EmbedLayerNormalization|Ordered\w+)"
    r"|\w+Integer(ToFloat)?|\w+(NBits|Bnb4|BlockQuantized)|MatMulFpQ4|QMoE"
)
"""Operators that take or make codes."""
_WIDTHS = {ir.DataType.DOUBLE: ("float64", 1e-4), ir.DataType.FLOAT16: ("float16", 3e-2),
           ir.DataType.BFLOAT16: ("bfloat16", 0.2)}  # fmt: skip
"""Name of a type that is turned into float32, and how far that may move the outputs, relative: its own rounding errors,
added up over the layers."""
_MOVED = 1e-3
_AGAIN = "export it again with opset 13 or newer, in float32"


def read_float(source: Path) -> tuple[ir.Model, list[str], float | None]:
    """Read a float model, raised to opset 13 and turned into float32 where it is older or of another width.

    Functions are inlined, and initializers are no inputs any more, as files of IR version 3 have them.

    Args:
        source: The file, checked before; its external data are beside it.

    Returns:
        The model, notes on what was changed, and how far that may move the outputs, relative; None where nothing was.

    Raises:
        InputError: It is quantized already, or its opset can't be raised.
    """
    model = ir.load(source)
    coded = next((node.op_type for node in _nodes(model) if _CODED.fullmatch(node.op_type)), None)
    if coded is not None:
        raise InputError(f"{source.name} is quantized already: it has {coded}", "start from the float model again")
    if model.functions:
        common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, _IR)
    notes, moved = [], None
    opset = model.opset_imports.get("", OPSET)
    if opset < OPSET:
        model, moved = _raised(model, source.name), _MOVED
        notes.append(f"opset {opset} was raised to {OPSET}, the first with codes by channel")
    found = _widths(model)
    if found:
        _narrow(model)
        names = " and ".join(_WIDTHS[kind][0] for kind in found)
        moved = max(_WIDTHS[kind][1] for kind in found)
        notes.append(f"computes in float32 what is not in 8 bit; it was in {names}, which its inputs and outputs keep")
    return model, notes, moved


def check_same(source: Path, changed: Path, moved: float) -> list[str]:
    """Compare a changed model with the file that it was read from, on random inputs.

    Args:
        source: As it came.
        changed: As it is to be quantized.
        moved: How far the outputs may be apart, relative.

    Returns:
        A note where they can't be compared.

    Raises:
        InputError: The outputs differ, or the changed one doesn't run.
    """
    runtime = OnnxRuntime(exact=True)
    try:
        feeds = make_feeds(graph_inputs(onnx.load(source, load_external_data=False)), {"batch": 1, "sequence": 16})
        wanted = runtime.open(source).run(feeds)
    except CompressKitError as error:
        return [f"not compared with the original file, which random inputs do not run: {error.message}"]
    found = runtime.open(changed).run(feeds)
    off = max((_distance(wanted[name], found[name]) for name in wanted), default=0.0)
    if off > moved:
        raise InputError(f"{source.name} computes something else in float32 of opset {OPSET} ({off:.1g} apart)", _AGAIN)
    return []


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Of the graph, its subgraphs and its functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()


def _raised(model: ir.Model, name: str) -> ir.Model:
    """The model in a newer opset."""
    ir.external_data.load_to_model(model)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), OPSET)
    except Exception as error:  # the converter's own kinds, and protobuf's
        text = f"{name} is of opset {model.opset_imports['']}, which 8 bit needs raised to {OPSET}: {first_line(error)}"
        raise InputError(text, _AGAIN) from error
    raised: ir.Model = ir.from_proto(proto)
    return raised


def _widths(model: ir.Model) -> list[ir.DataType]:
    """Types other than float32 that weights, inputs or outputs are of."""
    kinds = {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)}
    for graph in _graphs(model):
        stored = (value.const_value for value in graph.initializers.values())
        kinds |= {tensor.dtype for tensor in stored if tensor is not None and len(tensor.shape) > 1}
    return [kind for kind in _WIDTHS if kind in kinds]


def _narrow(model: ir.Model) -> None:
    """Turn every constant, Cast and value into float32, with a Cast at inputs and outputs of another width."""
    graph = model.graph
    outside = [(value, value.dtype) for value in graph.outputs if value.dtype in _WIDTHS]
    for part in _graphs(model):
        for value in part.initializers.values():
            if value.const_value is not None:
                value.const_value = _float32(value.const_value)
        inner = part.inputs if part is not graph else ()
        for value in (*inner, *part.initializers.values(), *(out for node in part for out in node.outputs)):
            if value.dtype in _WIDTHS:
                value.dtype = ir.DataType.FLOAT
    for node in graph.all_nodes():
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _float32(attribute.as_tensor()))
            elif attribute.name in ("to", "dtype") and attribute.value in _WIDTHS:
                node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT)
    for value in graph.inputs:
        if value.dtype in _WIDTHS:
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            graph.insert_before(graph[0], [cast])
    for value, kind in outside:
        _give(graph, value, kind)


def _give(graph: ir.Graph, value: ir.Value, kind: ir.DataType) -> None:
    """Give an output in the type that it had."""
    cast = ir.node("Cast", [value], {"to": kind})
    out = cast.outputs[0]
    out.name, value.name = value.name, f"{value.name}.float32"
    out.shape, out.type = value.shape, ir.TensorType(kind)
    graph.append(cast)
    graph.outputs[graph.outputs.index(value)] = out


def _float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in _WIDTHS:
        return tensor
    with np.errstate(over="ignore"):  # what float32 can't hold shows in the outputs
        return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _distance(wanted: np.ndarray, found: np.ndarray) -> float:
    """Relative L2 distance of two outputs; infinite where shapes differ or only one is finite."""
    if wanted.dtype.kind not in "fiub" or wanted.shape != found.shape:
        return 0.0 if wanted.shape == found.shape else np.inf
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if (finite != np.isfinite(b)).any():
        return np.inf
    off, norm = float(np.linalg.norm((a - b)[finite])), float(np.linalg.norm(a[finite]))
    return off / norm if norm else off
