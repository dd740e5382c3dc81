"""Does ``compresskit bench`` say the same of the same models again? Twenty repeats, each a command of its own.

Three files: a float32 chain of products, a copy of it, and the same with inner layers of a quarter of the width. The
quarter must be called faster, and the copy neither faster nor slower, in 19 of 20 repeats. Whatever else the machine
does meanwhile is part of the question: nothing is waited for.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from harness import Bench, cli, figure, spread, workplace
from onnx import TensorProto, helper, numpy_helper

from compresskit.benchmark.run import change

REPEATS, LEAST = 20, 19
WIDTH, INNER, DEPTH = 512, 1024, 4


def main() -> None:
    bench = Bench("verdict repeats", __doc__ or "")
    repeats = 2 if bench.quick else REPEATS
    least = repeats if bench.quick else LEAST
    quarter, copy = Counter[str](), Counter[str]()
    ratios = []
    with workplace() as folder:
        whole, same, part = (folder / f"{name}.onnx" for name in ("whole", "copy", "quarter"))
        chain(whole, INNER)
        shutil.copy(whole, same)
        chain(part, INNER // 4)
        for _ in range(repeats):
            report = cli("bench", whole, same, part, "--batch", 8, "--no-limits")
            copy[change(figure(report, "speedup", 1))] += 1
            quarter[change(figure(report, "speedup", 2))] += 1
            ratios.append(figure(report, "speedup", 2).value)
    right = quarter["faster"]
    bench.row("a quarter of the width is faster", f"≥ {least}", str(right), repeats, said(quarter), right >= least)
    right = copy["same"] + copy["inconclusive"]
    bench.row("the same file is no different", f"≥ {least}", str(right), repeats, said(copy), right >= least)
    bench.row("speed-up of the quarter", "", f"{np.median(ratios):.2f}×", repeats, spread(ratios))
    bench.end()


def said(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in counts.most_common())


def chain(path: Path, inner: int) -> None:
    """Write products from WIDTH to ``inner`` and back."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for index in range(2 * DEPTH):
        shape = (WIDTH, inner) if index % 2 == 0 else (inner, WIDTH)
        weights.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32) / 32, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"h{index}"]))
        value = f"h{index}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])
    y = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", WIDTH])
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


if __name__ == "__main__":
    main()
