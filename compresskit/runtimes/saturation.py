"""Which 8-bit products of an ONNX file can saturate on x86 without VNNI.

There onnxruntime multiplies unsigned activations by signed weights with ``vpmaddubsw``: two products of neighbours
along the reduction are added in 16 bit and clipped to [-32768, 32767]; from there on all is 32 bit (MLAS: the U8S8
kernels of ``Qgemm`` and ``ConvSym``, for AVX2 and AVX-512 alike). Raw codes are multiplied; zero points are accounted
for by exact sums. Neighbours are counted in the kernels' own order:

* matrix products: along K, in pairs from 0; an odd end stands alone;
* convolutions: channels last, that is along (kernel position, input channel of the group), padding included, whose code
  is the activation's zero point;
* depthwise convolutions, and unsigned weights, are multiplied in 16 bit and don't saturate.

What is looked at is the graph as onnxruntime fuses it on x86, because only fused operators multiply integers. There it
also turns signed activations into unsigned ones, so that files made for Arm saturate just so. All of this was held
against onnxruntime itself on an emulated processor without VNNI: equal bits. Its session option
``session.x64quantprecision`` set to 1 takes slower, exact products on such a processor.

OpenVINO multiplies by the same instruction, and clips; that isn't emulated. Convolutions whose output isn't quantized,
and on processors with AVX-512 transposed ones, are integers there and float in onnxruntime; where activations are
quantized while the model runs (``DynamicQuantizeLinear``) it is the other way round. Where a convolution has an odd
number of channels its neighbours may be others. Weights of 7 bits are exact in both engines.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError
from compresskit.runtimes.onnx_graph import OnnxGraph
from compresskit.runtimes.onnxfile import scan
from compresskit.runtimes.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    import numpy as np

LOW, HIGH = -(2**15), 2**15 - 1
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")
_DYNAMIC = "DynamicQuantizeMatMul"
_PLACES = {  # operator: positions of the activation's zero point, of the weight, of the weight's zero point
    "QLinearConv": (2, 3, 5),
    "QLinearMatMul": (2, 3, 5),
    "QGemm": (2, 3, 5),
    "MatMulIntegerToFloat": (4, 1, 5),
    "ConvInteger": (2, 1, 3),
    "MatMulInteger": (2, 1, 3),
    _DYNAMIC: (None, 1, 3),
}


@dataclass(frozen=True)
class Product:
    """An operator that multiplies integers.

    Attributes:
        node: The operator.
        name: Of its weight.
        weight: The weight's codes as stored, int8; None where nothing can saturate.
        rows: int64, with ``pairs``: weights ``2 p`` and ``2 p + 1`` of row ``r`` can saturate together.
        pairs: int64; see :func:`ordered` for rows and columns.
        dynamic: The range of the activations is found while the model runs.
    """

    node: Any
    name: str
    weight: np.ndarray | None = None
    rows: np.ndarray | None = None
    pairs: np.ndarray | None = None
    dynamic: bool = False

    @property
    def risky(self) -> int:
        """How many pairs of weights can saturate."""
        return 0 if self.pairs is None else len(self.pairs)


@dataclass(frozen=True)
class Saturation:
    """What a file's integer products can do on x86 without VNNI.

    Attributes:
        layers: Operators that multiply integers.
        risky: Those that can saturate, by the name of their weight: how many pairs of weights can.
        branches: There are others in branches, which aren't looked at.
    """

    layers: int
    risky: dict[str, int]
    branches: bool = False


def analyse(path: Path, runtime: str = "onnxruntime") -> Saturation:
    """Look for products that can saturate; a file without quantized activations isn't opened for it.

    Args:
        path: The ``.onnx`` file.
        runtime: The engine that multiplies: OpenVINO's names, or any other for onnxruntime.

    Raises:
        InputError: onnxruntime refuses the file.
        MachineError: onnxruntime isn't installed.
    """
    if not multiplies(path):
        return Saturation(0, {})
    model = fused(path)
    products = find(model)
    if runtime.startswith("openvino"):
        products = [product for product in products if not product.dynamic] + _unfused(model)
    return Saturation(len(products), {p.name: p.risky for p in products if p.risky}, in_branches(model))


def in_branches(model: Any) -> bool:
    """Whether integers are multiplied in branches of a fused graph, as behind early exits."""

    def inner(graph: Any) -> bool:
        return any(node.op_type in _PLACES or any(map(inner, _graphs(node))) for node in graph.node)

    return any(inner(graph) for node in model.graph.node for graph in _graphs(node))


def _graphs(node: Any) -> list[Any]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def multiplies(path: Path) -> bool:
    """False where no operator of a file quantizes activations, so that none multiplies integers."""
    return any(node.op in _QUANTIZERS or node.op in _PLACES for node in scan(path).nodes)


def fused(path: Path) -> Any:
    """The ``onnx.ModelProto`` that onnxruntime makes of a file on x86 before it chooses memory layouts; weights in it.

    Raises:
        InputError: onnxruntime refuses the file.
        MachineError: onnxruntime isn't installed.
    """
    import onnx

    runtime = OnnxRuntime()
    library = runtime.prepare()
    options = runtime.options(library, 1)
    options.log_severity_level = 4  # it warns that such a file is for this machine alone
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        out = Path(folder) / "fused.onnx"
        options.optimized_model_filepath = str(out)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "fused.data")
        options.add_session_config_entry("session.qdqisint8allowed", "0")  # as on x86, also where Arm would keep them
        try:
            library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            return onnx.load(str(out))
        except Exception as error:  # onnxruntime has one class of error for each status
            raise InputError(f"onnxruntime cannot load {path.name}: {str(error).splitlines()[0]}") from error


def find(model: Any) -> list[Product]:
    """The integer products of a fused graph, with the pairs of weights that can saturate."""
    from onnx import TensorProto

    graph = OnnxGraph(model)
    stored = graph.stored
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    kinds |= {name: tensor.data_type for name, tensor in stored.items()}
    found = []
    dynamic = {node.output[0] for node in model.graph.node if node.op_type == "DynamicQuantizeLinear"}
    for node in model.graph.node:
        if node.op_type in _QUANTIZERS:
            zero = node.input[2] if len(node.input) > 2 else ""
            kinds[node.output[0]] = kinds.get(zero, TensorProto.UINT8)
        if node.op_type not in _PLACES:
            continue
        name = node.input[_PLACES[node.op_type][1]]
        product = partial(Product, node, name, dynamic=node.op_type == _DYNAMIC or node.input[0] in dynamic)
        if not _unsigned(node, kinds) or name not in stored or stored[name].data_type != TensorProto.INT8:
            found.append(product())
            continue
        weight = graph.array(name)
        rows, pairs = risks(ordered(node, weight))
        found.append(product(weight, rows, pairs) if len(pairs) else product())
    return found


def _unsigned(node: Any, kinds: dict[str, int]) -> bool:
    """True where a product's activations are unsigned: told by their zero point, else by themselves."""
    zero_at = _PLACES[node.op_type][0]
    if zero_at is None:
        return True
    zero = node.input[zero_at] if zero_at < len(node.input) else ""
    return kinds.get(zero, kinds.get(node.input[0])) == 2  # TensorProto.UINT8


def _unfused(model: Any) -> list[Product]:
    """The convolutions with quantized inputs that onnxruntime leaves in float, and OpenVINO doesn't."""
    from onnx import TensorProto

    graph = OnnxGraph(model)
    found = []
    for node in model.graph.node:
        makers = [graph.producer[name] for name in node.input[:2] if name in graph.producer]
        codes = [maker.input[0] for maker in makers if maker.op_type == "DequantizeLinear"]
        if node.op_type not in ("Conv", "ConvTranspose") or len(codes) != 2 or codes[0] in graph.stored:
            continue
        name = codes[1]
        if name in graph.stored and graph.stored[name].data_type == TensorProto.INT8:
            weight = graph.array(name)
            found.append(Product(node, name, weight, *risks(ordered(node, weight))))
    return found


def weight_zero(product: Product, graph: OnnxGraph) -> int | None:
    """Zero point of a product's weight; None where it isn't stored, or channels differ in it."""
    import numpy as np

    at = _PLACES[product.node.op_type][2]
    name = product.node.input[at] if at < len(product.node.input) else ""
    if not name:
        return 0
    zeros = graph.array(name) if name in graph.stored else np.empty(0)
    return int(zeros.flat[0]) if zeros.size and np.all(zeros == zeros.flat[0]) else None


def ordered(node: Any, weight: np.ndarray) -> np.ndarray:
    """A weight's codes as the kernel takes them: ``(outputs, reduction)``, int16; no columns where nothing saturates.

    Convolution ``(outputs, channels, *kernel)`` to ``(outputs, kernel · channels)``; a matrix ``(K, N)`` to ``(N, K)``;
    transposed convolution ``(channels, outputs, *kernel)`` to ``(outputs · kernel, channels)``, group by group.
    """
    import numpy as np

    codes = weight.astype(np.int16)
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    if node.op_type == "ConvTranspose":
        return np.moveaxis(codes, 0, -1).reshape(-1, len(codes) // groups)
    if node.op_type in ("QLinearConv", "ConvInteger", "Conv"):
        if codes.shape[1] == 1 and groups == len(codes):
            return codes.reshape(len(codes), -1)[:, :0]
        return np.moveaxis(codes, 1, -1).reshape(len(codes), -1)
    if codes.ndim != 2:
        return codes.reshape(1, -1)[:, :0]
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return codes if transposed else codes.T


def risks(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, pairs) of the neighbours whose products, with the largest activations, leave 16 bit; both int64."""
    import numpy as np

    even = codes if codes.shape[1] % 2 == 0 else np.pad(codes, ((0, 0), (0, 1)))
    first, second = even[:, 0::2].astype(np.int32), even[:, 1::2].astype(np.int32)
    most = 255 * (np.maximum(first, 0) + np.maximum(second, 0))
    least = 255 * (np.minimum(first, 0) + np.minimum(second, 0))
    rows, pairs = np.nonzero((most > HIGH) | (least < LOW))
    return rows, pairs
