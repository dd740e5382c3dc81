"""Why a compressed model is slower than the original: what its graph and this CPU make the most likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from compresskit.bench.machine import cpu_flags
from compresskit.bench.run import change
from compresskit.report import Measurement, point_name, points_of
from compresskit.runner.candidate import Candidate
from compresskit.runtimes.onnxfile import Graph, Node, scan

_QUANTIZED = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"}
_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"}
_PRODUCTS = {"Conv", "MatMul", "Gemm", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "MatMulNBits"}
_TINY_MS = 0.2


def slower(models: Sequence[Candidate], timed: Sequence[Measurement]) -> list[str]:
    """A line for each model that is proven slower than the first, with the reason most likely.

    Args:
        models: The baseline first.
        timed: Latencies and speed-ups of all of them.
    """
    found = []
    points = points_of(timed)
    graph = cache(_graph)
    by_name = {model.name: model for model in models}
    for ratio in timed:
        if ratio.name != "speedup" or ratio.model not in by_name or change(ratio) != "slower":
            continue
        base = next(
            (m.value for m in timed if (m.model, m.name, m.point) == (models[0].name, "latency_p50", ratio.point)), None
        )
        where = point_name(ratio.point, points)
        what = f"{ratio.model} is {1 / ratio.value:.2f}× SLOWER than {models[0].name}{f' at {where}' if where else ''}"
        reason = likely(graph(by_name[ratio.model].path), ratio.batch or 1, base, graph(models[0].path))
        found.append(f"{what}: {reason}" if reason else f"{what}, and nothing in its graph says why; see --profile")
    return found


def likely(
    graph: Graph, batch: int, base_ms: float | None, before: Graph | None = None, flags: frozenset[str] | None = None
) -> str:
    """The reason most likely, in words; empty where the graph gives none.

    Args:
        graph: Of the slower model.
        batch: Samples in a call.
        base_ms: Median latency of the original, ms; None where it isn't known.
        before: Graph of the original.
        flags: Instruction sets of the CPU; None is this one's.
    """
    case = _Case(graph, batch, base_ms, before, cpu_flags() if flags is None else flags)
    return next(filter(None, (reason(case) for reason in _REASONS)), "")


@dataclass(frozen=True)
class _Case:
    """What a reason is looked for in; the attributes are the arguments of :func:`likely`."""

    graph: Graph
    batch: int
    base_ms: float | None
    before: Graph | None
    flags: frozenset[str]

    def nodes(self, *kinds: str) -> list[Node]:
        """The nodes of some kinds."""
        return [node for node in self.graph.nodes if node.op in kinds]

    @property
    def quantizes(self) -> bool:
        """Activations are rounded, and 8-bit integers multiplied."""
        return bool(self.nodes(*_QUANTIZED))


def _float_products_of_packed(case: _Case) -> str:
    packed = case.nodes("MatMulNBits")
    level0 = [node for node in packed if node.ints.get("accuracy_level", 0) < 4]
    if not level0:
        return ""
    bits = level0[0].ints.get("bits", 4)
    return (
        f"{len(level0)} of its {len(packed)} packed products ({bits} bit) are of accuracy_level 0: "
        "level 4 multiplies by int8"
    )


def _many_rows(case: _Case) -> str:
    tokens = any(spec.shape[1:2] and "int" in spec.dtype for spec in case.graph.inputs)
    if not case.nodes("MatMulNBits") or not (case.batch > 1 or tokens):
        return ""
    return (
        "weights are packed to save memory traffic, and a call of many rows (batch × tokens) is bound by "
        "arithmetic: int8, or a smaller --batch or --sequence"
    )


def _no_int8_instructions(case: _Case) -> str:
    if not case.quantizes or case.flags & _INT8:
        return ""
    return "it multiplies int8, and this CPU has no instructions for that (VNNI, dot products)"


def _weights_alone(case: _Case) -> str:
    if case.quantizes or not case.nodes("DequantizeLinear"):
        return ""
    return "only its weights are quantized: they become floats again in each call, and floats are multiplied"


def _depthwise(case: _Case) -> str:
    grouped = [node for node in case.nodes("Conv", "QLinearConv") if node.ints.get("group", 1) > 1]
    if not grouped or not case.quantizes:
        return ""
    return f"{len(grouped)} depthwise or grouped convolutions gain little from int8, and rounding activations costs"


def _odd_widths(case: _Case) -> str:
    """Most weights have a number of outputs or inputs that is odd for the kernels; a few channels don't count."""
    used = {name for node in case.nodes(*_PRODUCTS) for name in node.inputs}
    sizes = [shape[:2] for name, shape in case.graph.shapes.items() if name in used and len(shape) >= 2]
    odd = sum(any(size > 8 and size % 8 for size in shape) for shape in sizes)
    if 2 * odd <= len(sizes):
        return ""
    return f"{odd} of its weights have widths that are no multiple of 8, which kernels pad: prune with --round-to 8"


def _tiny_call(case: _Case) -> str:
    if case.base_ms is None or case.base_ms >= _TINY_MS:
        return ""
    return f"a call of the original takes {case.base_ms:.2g} ms: what each operator costs by itself outweighs its sums"


def _more_operators(case: _Case) -> str:
    extra = 0 if case.before is None else len(case.graph.nodes) - len(case.before.nodes)
    if extra <= max(4, len(case.nodes(*_PRODUCTS))):
        return ""
    return f"its graph has {extra} operators more than the original's, and each of them costs"


_REASONS = (
    _float_products_of_packed, _many_rows, _no_int8_instructions, _weights_alone, _depthwise, _odd_widths, _tiny_call,
    _more_operators,
)  # fmt: skip
"""The more likely one first."""


def _graph(path: Path) -> Graph:
    """What is known of a file; nothing of a folder."""
    return scan(path) if path.is_file() and path.suffix == ".onnx" else Graph()
