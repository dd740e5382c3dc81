"""8 bit of the light models of onnx's own package: opset 9, IR 3, weights that ConstantOfShape makes.

Each goes through ``quantize --bits 8`` as it ships, and with random weights in place of the constants (with constants
alone every output is the same, so that nothing could be told from likeness). A model works, or is refused in one clear
line; nothing else may reach the terminal. Likeness is that of the outputs to the float file's on 64 made-up inputs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from harness import Bench, absent, command, workplace
from onnx import numpy_helper

from compresskit.errors import ExitCode
from compresskit.report import Report

COSINE = 0.99
SHAPE = (16, 3, 224, 224)


def main() -> None:
    bench = Bench("light ONNX models", __doc__ or "")
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    models = sorted(folder.glob("light_*.onnx"))
    if not models:
        absent(f"light models in {folder}", "install onnx with its test data")
    with workplace() as work:
        np.savez(work / "x.npz", x=np.random.default_rng(0).normal(size=SHAPE).astype("f4"))
        for path in models[-2:-1] if bench.quick else models:
            drawn = work / path.name
            onnx.save(with_random_weights(onnx.load(path)), drawn)
            for method, data in (("int8-static", ("--data", work / "x.npz")), ("int8-dynamic", ())):
                case = f"{path.stem.removeprefix('light_')}, {method}"
                if not bench.wants(case):
                    continue
                fine, shipped, _ = quantized(path, method, data, work)
                passed, found, n = quantized(drawn, method, data, work)
                bench.row(case, f"≥ {COSINE}", found, n, f"as it ships: {shipped}", fine and passed)
            drawn.unlink()
    bench.end()


def quantized(path: Path, method: str, data: tuple[str | Path, ...], work: Path) -> tuple[bool, str, int]:
    """(works or is refused in one line, the cosine or that line, samples)."""
    words = ("quantize", path, "--bits", 8, "--method", method, *data, "--no-bench", "-o", work / "out", "--force")
    done = subprocess.run(
        command(*words, "--json", "-", "--quiet"), cwd=work, capture_output=True, check=False, encoding="utf-8"
    )
    said = done.stderr.strip().splitlines()
    if done.returncode in (ExitCode.OK, ExitCode.GATE) and not said:  # what ships is larger than a recipe of constants
        found = Report.model_validate(json.loads(done.stdout)).values("cosine")["out"]
        return found.value >= COSINE, f"{found.value:.4f}", found.n or 0
    line = said[0].removeprefix("error: ").replace(f"{path.parent}/", "") if said else "nothing said"
    return done.returncode == ExitCode.INPUT and len(said) <= 2, f"refused: {line}", 0


def with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Normal values that keep the size of activations in the place of what ConstantOfShape makes; the form stays."""
    rng, graph = np.random.default_rng(0), model.graph
    shapes = {t.name: numpy_helper.to_array(t).tolist() for t in graph.initializer if len(t.dims) == 1}
    gains = set(_gains(graph))
    made = [node for node in graph.node if node.op_type == "ConstantOfShape" and node.input[0] in shapes]
    for node in made:
        shape, name = shapes[node.input[0]], node.output[0]
        scale = np.sqrt(2 / max(1, int(np.prod(shape[1:])))) if len(shape) > 1 else 0.05
        values = rng.normal(size=shape) * scale + (name in gains)
        tensor = numpy_helper.from_array(values.astype("f4"), name)
        graph.initializer.append(tensor)
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, shape))  # as IR 3 wants it
        graph.node.remove(node)
    return model


def _gains(graph: onnx.GraphProto) -> Iterator[str]:
    """What channels are multiplied by or divided by the root of: around 1, not 0."""
    unsqueezed = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Unsqueeze"}
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            yield from (node.input[1], node.input[4])
        elif node.op_type == "Mul":
            yield from (unsqueezed.get(name, name) for name in node.input)


if __name__ == "__main__":
    main()
