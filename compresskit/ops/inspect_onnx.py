"""What an ONNX file is made of, one entry an operator that has weights; the same data as for a module."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.checkpoint.onnx_file import read_onnx_file
from compresskit.checkpoint.onnx_tensors import stored_bytes
from compresskit.ops.inspect_summary import WEIGHTLESS, summary
from compresskit.ops.onnx_macs import count_onnx_macs
from compresskit.ops.onnx_names import CODES, SCALE, ZERO_POINT, coded
from compresskit.ops.onnx_packed import GATHER, Found, join_packed
from compresskit.ops.packed.format import BITS
from compresskit.ops.packed.layout import count_points, packed_bytes
from compresskit.runtimes.onnx_graph import OnnxGraph

# Where an operator takes weights and biases; the other inputs of these hold scales, zero points and statistics.
_DATA_INPUTS = {
    "MatMulNBits": (1, 5),
    "GatherBlockQuantized": (0,),
    GATHER: (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "MatMulInteger": (0, 1),
    "ConvInteger": (1,),
    "DynamicQuantizeLSTM": (1, 2, 3),
    "BatchNormalization": (1, 2),
    "QuantizeLinear": (),
    "DequantizeLinear": (),
}
# Their constants are sizes, positions and limits, not weights.
_SIZES = ("Reshape", "Slice", "Pad", "Expand", "Squeeze", "Unsqueeze", "Split", "Resize", "Tile", "TopK", "Range")
_POSITIONS = ("ConstantOfShape", "CumSum", "ScatterND", "GatherND", "OneHot", "Trilu")
_LIMITS = ("Clip", "Equal", "Less", "Greater", "Where", "Pow")
_AXES = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
_PARTNERS = (SCALE, ZERO_POINT)
_SHAPING = frozenset((*_SIZES, *_POSITIONS, *_LIMITS, *_AXES))


class _Weights(OnnxGraph):
    """A graph, with what its codes belong to; ``packed`` is what ``join_packed`` found in it."""

    def __init__(self, model: Any, folder: Path, packed: dict[str, Found]) -> None:
        super().__init__(model, folder)
        self.packed = packed

    def numel(self, name: str) -> int:
        """Elements of a stored tensor, as they are stored."""
        return math.prod(self.stored[name].dims)

    def bytes(self, name: str) -> int:
        """Bytes of a stored tensor."""
        return stored_bytes(self.stored[name])

    def data(self, node: Any) -> dict[str, Any]:
        """The stored tensors of an operator's weights and biases, each with the DequantizeLinear on the way, if any."""
        if node.op_type in _SHAPING:
            return {}
        wanted = _DATA_INPUTS.get(node.op_type, range(len(node.input)))
        names = [node.input[i] for i in wanted if i < len(node.input)]
        return dict(self.leaf(name) for name in names if self.constant(name))

    def leaf(self, name: str) -> tuple[str, Any]:
        """The stored tensor behind a constant, and the DequantizeLinear on the way, if any."""
        dequantize = None
        while name not in self.stored:
            node = self.producer[name]
            dequantize = node if node.op_type == "DequantizeLinear" else dequantize
            name = next((n for n in node.input if n), "")
        return name, dequantize

    def partners(self, name: str) -> set[str]:
        """The scales and zero points that belong to codes by their name, whatever operator takes them."""
        base = coded(name)
        return set() if base is None else {f"{base}{end}" for end in _PARTNERS} & self.stored.keys()

    def is_partner(self, name: str) -> bool:
        """True for what :meth:`partners` gives of other codes."""
        return any(name.endswith(end) and f"{name.removesuffix(end)}{CODES}" in self.stored for end in _PARTNERS)


def inspect_onnx(path: Path) -> dict[str, Any]:
    """An ONNX file, as JSON data.

    Args:
        path: The file; it is parsed and checked, external data is read one tensor at a time.

    Returns:
        The same as :func:`compresskit.ops.inspect.inspect_module`; ``node`` is the operator's name in the graph.
        Quantized weights count as parameters at their logical size.

    Raises:
        InputError: The file is missing, damaged or not allowed.
    """
    model = read_onnx_file(path)
    packed = join_packed(model)
    graph = _Weights(model, path.parent, packed)
    macs, shapes, notes = count_onnx_macs(model, graph.constant, packed)
    layers: list[dict[str, Any]] = []
    owners: dict[str, str] = {}
    for node in model.graph.node:
        entry = None if any(map(graph.constant, node.output)) else _entry(graph, node, owners)
        if entry is not None:
            layers.append({**entry, "macs": None if macs is None else macs.get(node.output[0], 0)})
    known = macs is not None and all(layer["macs"] is not None for layer in layers)
    total = sum(v or 0 for v in macs.values()) if macs is not None and known else None
    rest = sum(map(graph.bytes, graph.stored)) - sum(layer["bytes"] - layer.get("tied_bytes", 0) for layer in layers)
    told = {
        f"{rest} bytes of constants (shapes, limits, tables) belong to no layer": rest > 0,
        "subgraphs and functions are not looked into": bool(model.functions) or _has_subgraphs(model),
        WEIGHTLESS: macs is not None,
    }
    return summary("onnx", layers, total, shapes, [*notes, *(note for note, holds in told.items() if holds)])


def _has_subgraphs(model: Any) -> bool:
    return any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute)


def _entry(graph: _Weights, node: Any, owners: dict[str, str]) -> dict[str, Any] | None:
    """One layer; None when the operator holds no weights."""
    found = graph.data(node)
    main = max(found, key=graph.numel, default="")
    if not found or graph.numel(main) <= 1 or _is_index(node, graph, main) or graph.is_partner(main):
        return None
    tensors = graph.partners(main).union(*(graph.leaves(name) for name in node.input if graph.constant(name)))
    shape, dtype = _logical(graph, node, main)
    parameters = math.prod(shape) + sum(graph.numel(name) for name in found if name != main)
    entry = {
        "name": main,
        "node": node.name,
        "type": "Gather" if node.op_type == GATHER else node.op_type,
        "shape": shape,
        "dtype": dtype,
        "parameters": parameters,
        "bytes": sum(map(graph.bytes, tensors)),
        "zeros": _zeros(graph, node, found),
        **_as_layer(node, main, shape),
    }
    if tied := sum(map(graph.bytes, tensors & owners.keys())):
        entry["tied_bytes"] = tied
    if main in owners:
        entry |= {"tied_to": owners[main], "tied_parameters": parameters}
    for name in tensors:
        owners.setdefault(name, main)
    return entry


def _as_layer(node: Any, main: str, shape: list[int]) -> dict[str, Any]:
    """``weight``: the shape with outputs first, of operators that stand for a layer; ``groups`` of a convolution.

    ``left`` marks a product whose weight comes first, which int8-dynamic doesn't take.
    """
    if node.op_type == "Conv":
        return {"weight": shape, "groups": _attribute(node, "group", 1)}
    if node.op_type in ("ConvTranspose", "Gather"):
        return {"weight": shape}
    if node.op_type in ("MatMul", "Gemm") and len(shape) == 2:
        left = node.input[0] == main
        as_stored = left or (node.op_type == "Gemm" and _attribute(node, "transB", 0))
        return {"weight": shape if as_stored else shape[::-1], **({"left": True} if left else {})}
    return {}


def _is_index(node: Any, graph: _Weights, main: str) -> bool:
    """True for an integer constant that is used as a position (Gather, Add of positions), not as codes."""
    kind = graph.stored[main].data_type
    return kind in (6, 7, 9) and node.op_type not in _DATA_INPUTS  # int32, int64, bool


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _logical(graph: _Weights, node: Any, main: str) -> tuple[list[int], str]:
    """Shape and dtype of the weight that packed codes stand for."""
    from onnx import TensorProto

    tensor = graph.stored[main]
    bits = _attribute(node, "bits", 4)
    dims = [int(size) for size in tensor.dims]
    if node.op_type == "MatMulNBits":
        return [_attribute(node, "N", 0), _attribute(node, "K", 0)], f"int{bits}"
    if node.op_type == "GatherBlockQuantized" and tensor.data_type == TensorProto.UINT8:
        return [*dims[:-1], dims[-1] * 8 // bits], f"int{bits}"
    if main in graph.packed:
        return list(graph.packed[main].shape), graph.packed[main].dtype
    name = TensorProto.DataType.Name(tensor.data_type).lower()
    return dims, {"float": "float32", "double": "float64"}.get(name, name)


def _zeros(graph: _Weights, node: Any, found: dict[str, Any]) -> int | None:
    """Weights that are exactly zero; None where the layout isn't one that is known here."""
    if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
        return _packed_zeros(graph, node)
    if node.op_type in ("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM"):
        return None
    total = 0
    for name, dequantize in found.items():
        if name in graph.packed:
            return _unpacked_zeros(graph, name, graph.packed[name])
        codes = graph.array(name)
        point: Any = 0
        if dequantize is not None and len(dequantize.input) > 2 and dequantize.input[2]:
            point = _spread_point(graph, dequantize, codes.shape)
        if point is None:
            return None
        total += int(np.count_nonzero(codes == point))
    return total


def _unpacked_zeros(graph: _Weights, name: str, found: Found) -> int | None:
    codes = graph.array(name)
    rows, groups, width = codes.shape
    columns = math.prod(found.shape) // max(rows, 1)
    size = math.ceil(columns / max(groups, 1)) if groups else 0
    if packed_bytes(size, found.bits) != width:
        return None
    points = found.zero if found.zeros is None else graph.array(found.zeros)
    if points is None or (not isinstance(points, int) and points.shape != (rows, packed_bytes(groups, found.bits))):
        return None
    return count_points(codes, points, found.bits, size, columns)


def _spread_point(graph: _Weights, node: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """A DequantizeLinear's zero points in a shape that broadcasts to its codes; None when they are computed."""
    if node.input[2] not in graph.stored:
        return None
    point = graph.array(node.input[2])
    axis = _attribute(node, "axis", 1) % len(shape)
    block = _attribute(node, "block_size", 0)
    if block:
        return np.repeat(point, block, axis)[tuple(slice(0, size) for size in shape)]
    return point.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if point.ndim == 1 else point


def _packed_zeros(graph: _Weights, node: Any) -> int | None:
    at, point_at = (1, 3) if node.op_type == "MatMulNBits" else (0, 3)
    name = graph.leaf(node.input[at])[0]
    shape, _ = _logical(graph, node, name)
    bits, block = _attribute(node, "bits", 4), _attribute(node, "block_size", 128)
    if bits not in BITS or block < 1:
        return None
    codes = graph.array(name)
    groups, width = (math.ceil(shape[1] / block), packed_bytes(block, bits)) if len(shape) == 2 else (0, 0)
    zeros = None
    if len(node.input) > point_at and node.input[point_at]:
        zeros = graph.array(graph.leaf(node.input[point_at])[0])
        if zeros.dtype != np.uint8 or zeros.size != shape[0] * math.ceil(groups * bits / 8):
            return None
        zeros = zeros.reshape(shape[0], -1)
    if codes.dtype != np.uint8 or codes.size != shape[0] * groups * width:
        return None
    data = codes.reshape(shape[0], groups, width)
    return count_points(data, 1 << (bits - 1) if zeros is None else zeros, bits, block, shape[1])
