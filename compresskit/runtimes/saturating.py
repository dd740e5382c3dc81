"""onnxruntime as on x86 without VNNI: the integer products that saturate there do so here, on any machine.

Each operator that can saturate (see :mod:`compresskit.runtimes.saturation`) is written out with plain operators that
every machine computes exactly: the product in 32 bit with unsigned weights, minus what each pair of products loses to
its clipping. Only pairs that can saturate at all are followed; their sums are exact in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import MachineError
from compresskit.runtimes.onnx_graph import OnnxGraph
from compresskit.runtimes.onnxfile import index_limits, scan
from compresskit.runtimes.onnxruntime import OnnxRuntime, OnnxSession
from compresskit.runtimes.saturation import (
    HIGH,
    LOW,
    Product,
    find,
    fused,
    in_branches,
    multiplies,
    ordered,
    weight_zero,
)

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 128  # pairs in one operator: 520 clipped at once could leave float32's exact integers; fewer take less memory
_MOST_BYTES = 1 << 30
_CONVS = ("QLinearConv", "ConvInteger")
_GEOMETRY = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


class SaturatingOnnxRuntime(OnnxRuntime):
    """Runs ``.onnx`` files on the CPU as an x86 without VNNI does; slower, and never to be timed.

    Args:
        clips: False leaves out the clipping: then it runs files as every other CPU does, also on an x86 without VNNI.
    """

    def __init__(self, clips: bool = True) -> None:
        super().__init__(exact=True)
        self._limits = (LOW, HIGH) if clips else (-(2**31), 2**31)

    def open(self, path: Path, threads: int = 0, device: str = "cpu") -> OnnxSession:
        """Load a model; a file in which nothing can saturate is opened as any other.

        Raises:
            InputError: onnxruntime refuses the file.
            MachineError: onnxruntime isn't installed, memory runs out, or too much of the file can saturate.
            UsageError: The device has no known name.
        """
        model = fused(path) if device == "cpu" and path.is_file() and multiplies(path) else None
        if model is not None and in_branches(model):
            raise MachineError(f"{path.name}: 8-bit products behind early exits can't be emulated", "remove `target`")
        products = [product for product in find(model) if product.risky] if model is not None else []
        if model is None or not products:
            return OnnxRuntime().open(path, threads, device)
        rewrite(model, products, self._limits)
        library = self.prepare()
        options = self.options(library, threads)
        limits = index_limits(scan(path))
        return self.load(library, model.SerializeToString(), options, ["CPUExecutionProvider"], path.name, limits)


def rewrite(model: Any, products: list[Product], limits: tuple[int, int] = (LOW, HIGH)) -> None:
    """Write out, in place, the products of a fused model that can saturate.

    Raises:
        MachineError: The constants of it would take more than 1 GB, or an operator is of a form that isn't known.
    """
    if sum(4 * p.risky * sum(_widths(p)) for p in products) > _MOST_BYTES:
        count = sum(p.risky for p in products)
        raise MachineError(f"{count} pairs of weights can saturate on x86 without VNNI, too many to emulate")
    graph = OnnxGraph(model)
    made = {product.node.output[0]: _written(model, graph, product, limits) for product in products}
    nodes = [new for node in model.graph.node for new in made.get(node.output[0], [node])]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _widths(product: Product) -> tuple[int, int]:
    """How many values go in, all groups counted, and how many outputs there are."""
    if product.weight is None:
        return 0, 0
    outputs = len(ordered(product.node, product.weight))
    return _groups(product.node) * product.weight.size // max(1, outputs), outputs


def _groups(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _written(model: Any, graph: OnnxGraph, product: Product, limits: tuple[int, int]) -> list[Any]:
    """The nodes that take the place of a product."""
    node, zero = product.node, weight_zero(product, graph)
    flipped = any(a.name == "transA" and a.i for a in node.attribute)
    if zero is None or flipped or product.weight is None:
        raise MachineError(f"{node.op_type} of {product.name} can saturate without VNNI in a form that isn't emulated")
    writer = _Writer(model, graph.stored, node.output[0])
    _FORMS[node.op_type](writer, lambda x, x_zero: _total(writer, product, x, x_zero, zero, limits), node)
    writer.nodes[-1].output[0] = node.output[0]
    return writer.nodes


@dataclass
class _Writer:
    """Adds operators and constants to a graph, under names that begin with ``prefix``."""

    model: Any
    stored: dict[str, Any]
    prefix: str
    nodes: list[Any] = field(default_factory=list)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A node; gives the name of its first output, to which ``:1`` and so on are added for the others."""
        from onnx import helper

        name = f"{self.prefix}:exact{len(self.nodes)}"
        names = [name, *(f"{name}:{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return name

    def keep(self, array: np.ndarray) -> str:
        """A constant."""
        from onnx import numpy_helper

        name = f"{self.prefix}:constant{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        """A float32 scalar."""
        import numpy as np

        return self.keep(np.array(value, np.float32))

    def real(self, name: str) -> str:
        """Cast to float32."""
        return self.add("Cast", name, to=1)


class _MatrixProduct:
    """How pairs of weights of a matrix product are multiplied and put back; ``codes`` as :func:`ordered` gives them."""

    def __init__(self, writer: _Writer, node: Any, weight: np.ndarray) -> None:
        self.writer = writer
        self.weight = weight.T if any(a.name == "transB" and a.i for a in node.attribute) else weight

    def integers(self, x: str, codes: np.ndarray, *zeros: str) -> str:
        """The exact sums of all products, int32."""
        return self.writer.add("MatMulInteger", x, self.writer.keep(codes), *zeros)

    def pairs(self, x: str, spread: np.ndarray, rows: np.ndarray) -> str:
        """The sum of each pair of products, float32."""
        return self.writer.add("MatMul", x, self.writer.keep(spread[:, : len(self.weight)].T))

    def outputs(self, x: str, gather: np.ndarray) -> str:
        """What was computed by pair, summed by output."""
        return self.writer.add("MatMul", x, self.writer.keep(gather))

    def by_channel(self, values: np.ndarray) -> np.ndarray:
        """A number for each pair, in a shape that broadcasts to the sums."""
        return values


class _Convolution(_MatrixProduct):
    """The same for a convolution."""

    def __init__(self, writer: _Writer, node: Any, weight: np.ndarray) -> None:
        from onnx import helper

        self.writer, self.weight, self.groups = writer, weight, _groups(node)
        self.geometry = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in _GEOMETRY}
        self.ones = [1] * (weight.ndim - 2)

    def integers(self, x: str, codes: np.ndarray, *zeros: str) -> str:
        kept = self.writer.keep(codes)
        return self.writer.add("ConvInteger", x, kept, *zeros, group=self.groups, **self.geometry)

    def pairs(self, x: str, spread: np.ndarray, rows: np.ndarray) -> str:
        kernel = _kernel(spread[:, : self.weight[0].size], rows, self.weight, self.groups)
        return self.writer.add("Conv", x, self.writer.keep(kernel), **self.geometry)

    def outputs(self, x: str, gather: np.ndarray) -> str:
        return self.writer.add("Conv", x, self.writer.keep(gather.T.reshape(*gather.T.shape, *self.ones)))

    def by_channel(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(1, -1, *self.ones)


def _total(writer: _Writer, product: Product, x: str, x_zero: str, zero: int, limits: tuple[int, int]) -> str:
    """Name of the int32 sums, as the kernel computes them with its clipping."""
    import numpy as np

    weight = product.weight
    if weight is None or product.rows is None or product.pairs is None:
        raise TypeError("a product without risk is not written out")
    form = (_Convolution if product.node.op_type in _CONVS else _MatrixProduct)(writer, product.node, weight)
    unsigned = (form.weight.astype(np.int16) + 128).astype(np.uint8)
    sums = form.integers(x, unsigned, x_zero, writer.keep(np.array(zero + 128, np.uint8)))
    centred = writer.add("Sub", writer.real(x), writer.real(x_zero)) if x_zero else writer.real(x)
    codes = ordered(product.node, weight)
    codes = codes if codes.shape[1] % 2 == 0 else np.pad(codes, ((0, 0), (0, 1)))
    low, high = writer.number(limits[0]), writer.number(limits[1])
    for start in range(0, len(product.rows), _CHUNK):
        rows, pairs = product.rows[start : start + _CHUNK], product.pairs[start : start + _CHUNK]
        spread, gather = _selectors(codes, rows, pairs)
        found = form.pairs(centred, spread, rows)
        if x_zero:  # padding and zero points are codes like any other
            whole = writer.keep(form.by_channel(spread.sum(1)))
            found = writer.add("Add", found, writer.add("Mul", writer.real(x_zero), whole))
        kept = writer.add("Max", writer.add("Min", found, high), low)
        lost = form.outputs(writer.add("Sub", found, kept), gather)
        sums = writer.add("Sub", sums, writer.add("Cast", lost, to=6))
    return sums


def _selectors(codes: np.ndarray, rows: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair: its two weights, float32 ``(pairs, columns)``, and a one at its row, ``(pairs, outputs)``."""
    import numpy as np

    index = np.arange(len(rows))
    spread = np.zeros((len(rows), codes.shape[1]), np.float32)
    for side in (0, 1):
        spread[index, 2 * pairs + side] = codes[rows, 2 * pairs + side]
    gather = np.zeros((len(rows), len(codes)), np.float32)
    gather[index, rows] = 1
    return spread, gather


def _kernel(spread: np.ndarray, rows: np.ndarray, weight: np.ndarray, groups: int) -> np.ndarray:
    """Rows in the kernel's order as weights ``(pairs, all channels, *kernel)`` of a convolution without groups."""
    import numpy as np

    _, channels, *size = weight.shape
    own = np.moveaxis(spread.reshape(len(rows), *size, channels), -1, 1)
    kernel = np.zeros((len(rows), groups * channels, *size), np.float32)
    for group in range(groups):
        of_group = rows // (len(weight) // groups) == group
        kernel[of_group, group * channels : (group + 1) * channels] = own[of_group]
    return kernel


Total = Callable[[str, str], str]


def _inputs(node: Any, count: int) -> list[str]:
    return [*node.input, *[""] * (count - len(node.input))]


def _integer(writer: _Writer, total: Total, node: Any) -> None:
    """ConvInteger and MatMulInteger: the sums themselves."""
    x, _, x_zero, _ = _inputs(node, 4)
    total(x, x_zero)


def _requantized(writer: _Writer, total: Total, node: Any) -> None:
    """QLinearConv, QLinearMatMul and QGemm: sums and int32 bias, scaled, rounded half to even, clipped."""
    from onnx import helper

    gemm, conv = node.op_type == "QGemm", node.op_type == "QLinearConv"
    if gemm:
        x, x_scale, x_zero, w, w_scale, _, bias, y_scale, y_zero = _inputs(node, 9)
    else:
        x, x_scale, x_zero, w, w_scale, _, y_scale, y_zero, bias = _inputs(node, 9)
    sums = total(x, x_zero)
    rank = len(writer.stored[w].dims)

    def channels(name: str) -> str:
        return writer.add("Reshape", name, _shape(writer, (1, -1, *[1] * (rank - 2)))) if conv else name

    if bias:
        sums = writer.add("Add", sums, channels(bias))
    alpha = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "alpha"), 1.0) if gemm else 1.0
    scale = x_scale if alpha == 1.0 else writer.add("Mul", writer.number(alpha), x_scale)
    scale = writer.add("Mul", scale, w_scale)
    if not y_scale:
        writer.add("Mul", writer.real(sums), channels(scale))
        return
    found = writer.add("Mul", writer.real(sums), channels(writer.add("Div", scale, y_scale)))
    kind = writer.stored[y_zero].data_type if y_zero in writer.stored else 2
    zero = writer.real(y_zero)
    low, high = (0, 255) if kind == 2 else (-128, 127)
    found = writer.add("Max", found, writer.add("Sub", writer.number(low), zero))
    found = writer.add("Min", found, writer.add("Sub", writer.number(high), zero))
    writer.add("Cast", writer.add("Add", writer.add("Round", found), zero), to=kind)


def _to_float(writer: _Writer, total: Total, node: Any) -> None:
    """MatMulIntegerToFloat and DynamicQuantizeMatMul: sums times both scales, plus a float bias."""
    if node.op_type == "MatMulIntegerToFloat":
        x, _, x_scale, w_scale, x_zero, _, bias = _inputs(node, 7)
    else:
        x, _, w_scale, _, bias = _inputs(node, 5)
        x = writer.add("DynamicQuantizeLinear", x, outputs=3)
        x_scale, x_zero = f"{x}:1", f"{x}:2"
    found = writer.real(total(x, x_zero))
    found = writer.add("Mul", found, writer.add("Mul", x_scale, w_scale))
    if bias:
        writer.add("Add", found, bias)


def _shape(writer: _Writer, sizes: tuple[int, ...]) -> str:
    import numpy as np

    return writer.keep(np.array(sizes, np.int64))


_FORMS: dict[str, Callable[[_Writer, Total, Any], None]] = {
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), _integer),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), _requantized),
    **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _to_float),
}
