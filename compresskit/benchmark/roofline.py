"""What this machine can do at best: bytes it moves and products it computes in a second, measured in fresh processes.

The bandwidth is the better of copying and reading, with numpy, over as many bytes as a call of the model moves: what
fits into caches moves faster. The matrix rate is that of the engine itself on one large product, in float32 and in int8
(uint8 activations by int8 weights). Both are of the given number of threads.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np

from compresskit.benchmark import machine
from compresskit.benchmark.plan import Plan, Spec, Timing
from compresskit.benchmark.pool import Worker
from compresskit.benchmark.run import open_spec

Kind = Literal["float32", "int8"]
_ROWS, _INNER, _COLUMNS = 512, 2048, 2048
_TURN_S, _TURNS = 0.05, 4


def bandwidth(size: int, threads: int = 0) -> float:
    """Bytes a second, measured by :func:`compresskit.benchmark.memory_rate.moved` in a process of its own.

    Raises:
        MachineError: The process can't be started, or doesn't answer.
    """
    with ExitStack() as stack:
        worker = Worker("the bandwidth", "none", Plan.timeout_s, stack)
        worker.answer()
        return float(worker.ask(do="bandwidth", size=size, threads=threads or machine.cores()))


def matrix_rate(kind: Kind, runtime: str = "onnxruntime", threads: int = 0, device: str = "cpu") -> float:
    """Operations (two for each multiply-accumulate) a second of an engine on one large product.

    Args:
        kind: Of the numbers that are multiplied.
        runtime: One that takes ONNX files.
        threads: Of the product; 0 is one for each physical core.
        device: Device, as the runtime names it.

    Raises:
        CompressKitError: The engine isn't installed or can't run the product.
    """
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder, ExitStack() as stack:
        path = Path(folder) / f"{kind}.onnx"
        path.write_bytes(_product(kind))
        spec = Spec(f"the {kind} product", path, runtime, threads, device)
        worker = Worker(spec.name, runtime, Plan.timeout_s, stack)
        worker.answer()
        open_spec(spec, worker, Timing(), 1, 0)
        turns = [worker.ask(do="round", min_time_s=_TURN_S, min_calls=2) for _ in range(_TURNS)]
    return float(2e9 * _ROWS * _INNER * _COLUMNS / min(map(min, turns)))


def _product(kind: Kind) -> bytes:
    """An ONNX file of one product; its int8 form quantizes activations and result as a static int8 model does."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [_ROWS, _INNER])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [_ROWS, _COLUMNS])
    if kind == "float32":
        weights = [numpy_helper.from_array(rng.standard_normal((_INNER, _COLUMNS), np.float32), "w")]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        weights = [
            numpy_helper.from_array(rng.integers(-127, 128, (_INNER, _COLUMNS), np.int8), "w"),
            numpy_helper.from_array(np.array(0.03, np.float32), "s"),
            numpy_helper.from_array(np.array(0, np.int8), "z"),
            numpy_helper.from_array(np.array(128, np.uint8), "u"),
            numpy_helper.from_array(np.array(1.0, np.float32), "t"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "u"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "u"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
            helper.make_node("MatMul", ["xd", "wd"], ["m"]),
            helper.make_node("QuantizeLinear", ["m", "t", "u"], ["mq"]),
            helper.make_node("DequantizeLinear", ["mq", "t", "u"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "product", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
