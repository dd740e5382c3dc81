"""Why a compressed model is slower than the original: what its graph and this CPU make the most likely."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from compresskit.benchmark.machine import cpu_flags
from compresskit.benchmark.run import change
from compresskit.report import Measurement, point_name, points_of
from compresskit.runner.candidate import Candidate
from compresskit.runtimes.onnxfile import Graph, scan

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
        found.append(f"{what}: {reason}" if reason else f"{what}, and its graph shows no reason; see `profile`")
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
    flags = cpu_flags() if flags is None else flags
    return _of_packed(graph, batch) or _of_int8(graph, flags) or _of_operators(graph, base_ms, before)


def _of_packed(graph: Graph, batch: int) -> str:
    """A reason in packed weights."""
    packed = [node for node in graph.nodes if node.op == "MatMulNBits"]
    level0 = [node for node in packed if node.ints.get("accuracy_level", 0) < 4]
    if level0:
        bits = level0[0].ints.get("bits", 4)
        return (
            f"{len(level0)} of its {len(packed)} packed products ({bits} bit) are of accuracy_level 0: "
            "level 4 multiplies by int8"
        )
    rows = any(spec.shape[1:2] for spec in graph.inputs if "int" in spec.dtype)
    if packed and (batch > 1 or rows):
        return (
            "weights are packed to save memory traffic, and a call of many rows (batch × tokens) is bound by "
            "arithmetic: int8, or a smaller `batch` or `sequence`"
        )
    return ""


def _of_int8(graph: Graph, flags: frozenset[str]) -> str:
    """A reason in 8-bit weights and products."""
    kinds = {node.op for node in graph.nodes}
    if not kinds & _QUANTIZED:
        if "DequantizeLinear" in kinds:
            return "only its weights are quantized: they become floats again in each call, and floats are multiplied"
        return ""
    if not flags & _INT8:
        return "it multiplies int8, and this CPU has no instructions for that (VNNI, dot products)"
    depthwise = [n for n in graph.nodes if n.op in ("Conv", "QLinearConv") and n.ints.get("group", 1) > 1]
    if depthwise:
        return (
            f"{len(depthwise)} depthwise or grouped convolutions gain little from int8, and rounding activations costs"
        )
    return ""


def _of_operators(graph: Graph, base_ms: float | None, before: Graph | None) -> str:
    """A reason in the sizes and the number of operators."""
    if odd := _odd_widths(graph):
        return f"{odd} of its weights have widths that are no multiple of 8, which kernels pad: prune with `round_to` 8"
    if base_ms is not None and base_ms < _TINY_MS:
        return f"a call of the original takes {base_ms:.2g} ms: the overhead of each operator exceeds its arithmetic"
    extra = len(graph.nodes) - len(before.nodes) if before is not None else 0
    products = sum(node.op in _PRODUCTS for node in graph.nodes)
    if extra > max(4, products):
        return f"its graph has {extra} operators more than the original's, and each of them costs"
    return ""


def _odd_widths(graph: Graph) -> int:
    """Weights whose number of outputs or inputs is odd for the kernels; first layers of few channels don't count."""
    used = {name for node in graph.nodes if node.op in _PRODUCTS for name in node.inputs}
    sizes = [shape[:2] for name, shape in graph.shapes.items() if name in used and len(shape) >= 2]
    odd = sum(any(size > 8 and size % 8 for size in shape) for shape in sizes)
    return odd if 2 * odd > len(sizes) else 0


def _graph(path: Path) -> Graph:
    """What is known of a file; nothing of a folder."""
    return scan(path) if path.is_file() and path.suffix == ".onnx" else Graph()
