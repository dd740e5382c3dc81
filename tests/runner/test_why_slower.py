"""The reason that a slower model is told with."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit.model import InputSpec
from compresskit.report import Measurement
from compresskit.runner.candidate import Candidate
from compresskit.runner.why_slower import likely, slower
from compresskit.runtimes.onnxfile import Graph, Node

VNNI, PLAIN = frozenset({"avx2", "avx512_vnni"}), frozenset({"avx2"})
IDS = InputSpec("ids", "int64", ("batch", "sequence"))


def packed(level: int, inputs: tuple[InputSpec, ...] = ()) -> Graph:
    return Graph([Node("MatMulNBits", ints={"bits": 4, "accuracy_level": level})], inputs=list(inputs))


def convs(width: int, **ints: int) -> Graph:
    names = [f"w{i}" for i in range(4)]
    return Graph(
        [Node("QuantizeLinear"), *(Node("Conv", inputs=["x", name], ints=ints) for name in names)],
        dict.fromkeys(names, (width, width, 3, 3)),
    )


@pytest.mark.parametrize(
    ("graph", "batch", "flags", "said"),
    [
        (packed(0), 1, VNNI, "accuracy_level 0"),
        (packed(4), 8, VNNI, "many rows"),
        (packed(4, (IDS,)), 1, VNNI, "many rows"),
        (convs(16), 1, PLAIN, "no instructions for that (VNNI"),
        (convs(16, group=16), 1, VNNI, "depthwise"),
        (convs(11), 1, VNNI, "no multiple of 8"),
        (Graph([Node("DequantizeLinear"), Node("MatMul")]), 1, VNNI, "only its weights"),
    ],
)
def test_the_graph_tells_why(graph: Graph, batch: int, flags: frozenset[str], said: str) -> None:
    assert said in likely(graph, batch, 10.0, flags=flags)


def test_small_calls_and_many_operators_come_last() -> None:
    graph = Graph([Node("Add")] * 20)
    assert "0.05 ms" in likely(graph, 1, 0.05, Graph([Node("MatMul")]), VNNI)
    assert "19 operators more" in likely(graph, 1, 10.0, Graph([Node("MatMul")]), VNNI)
    assert likely(Graph([Node("MatMul")]), 1, 10.0, Graph([Node("MatMul")]), VNNI) == ""


@pytest.mark.parametrize(("ratio", "told"), [(0.5, True), (1.0, False), (2.0, False)])
def test_only_what_is_proven_slower_is_told(tmp_path: Path, ratio: float, told: bool) -> None:
    models = [Candidate(name, tmp_path / name, name) for name in ("a.onnx", "b.onnx")]
    speed = Measurement(model="b.onnx", name="speedup", value=ratio, n=7, low=0.98 * ratio, high=1.02 * ratio)
    found = slower(models, [Measurement(model="a.onnx", name="latency_p50", value=1.0), speed])
    assert bool(found) is told
    assert not told or "b.onnx is 2.00× SLOWER than a.onnx" in found[0]
