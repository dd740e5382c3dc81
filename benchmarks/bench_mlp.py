"""The 8 × (2048→5632→2048) MLP: one token in 4 bit against float32, and the time to round its weights.

Speed: examples/mlp.py with random weights, exported in float32 and quantized to 4 bit (group 32, zero points), both
under onnxruntime by ``compresskit bench``; and as NF4 under torch, where the bytes that the product reads are held
against the bandwidth of copying (bytes read and written, best of several copies, before and after). Rounding: 16
weights, in one process, each method in turn, against onnxruntime's MatMulNBitsQuantizer on the same numbers (block 32,
zero points); only rounding and packing are timed.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, Bench, cli, figure, interval, ratio, spread, workplace

from compresskit.benchmark.machine import cores

LEAST_SPEEDUP, LEAST_PLAIN, LEAST_CLIPPED = 4.3, 3.0, 1.0
LEAST_BANDWIDTH = 0.7
DEPTH, WIDTH, HIDDEN = 8, 2048, 5632
MAKE = """
import sys, torch
sys.path.insert(0, "examples")
from mlp import mlp
torch.manual_seed(0)
torch.save(mlp(depth=int(sys.argv[2])).state_dict(), sys.argv[1])
"""
COPY = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
source = torch.ones(1 << 28, dtype=torch.uint8)
target, times = torch.ones_like(source), []
for _ in range(15):
    start = time.perf_counter()
    target.copy_(source)
    times.append(time.perf_counter() - start)
print(2 * source.numel() / min(times))
"""
NF4_BYTES = 0.5 + 2 / 64  # of a weight, as bitsandbytes' kernel reads it: a code, and a bfloat16 scale for 64


def main() -> None:
    bench = Bench("MLP", __doc__ or "")
    depth = 1 if bench.quick else DEPTH
    one_token(bench, depth)
    one_token_torch(bench, depth)
    rounding(bench, depth)
    bench.end()


def one_token(bench: Bench, depth: int) -> None:
    with workplace() as folder:
        checkpoint = folder / "mlp.pt"
        arch = make_mlp(checkpoint, depth)
        cli("export", checkpoint, *arch, "-o", folder / "fp32.onnx")
        cli("quantize", checkpoint, "--bits", 4, *arch, "--no-bench", "-o", folder / "int4")
        processes = 3 if bench.quick else 15
        report = cli("bench", folder / "fp32.onnx", folder / "int4", "--processes", processes)
    speedup = figure(report, "speedup")
    bench.row(
        "4 bit, one token, speed-up over float32 under onnxruntime", f"≥ {LEAST_SPEEDUP}×", f"{speedup.value:.2f}×",
        speedup.n, interval(speedup), speedup.value >= LEAST_SPEEDUP,
    )  # fmt: skip
    for index, name in ((0, "float32"), (1, "4 bit")):
        found = figure(report, "latency_p50", index)
        bench.row(f"{name}, one token", "", f"{found.value:.2f} ms", found.n, interval(found))
        size = f"{report.models[index].bytes / 1e6:.1f} MB"
        bench.row(f"{name}, size of model.onnx", "", size, 1)


def one_token_torch(bench: Bench, depth: int) -> None:
    with workplace() as folder:
        checkpoint = folder / "mlp.pt"
        arch = make_mlp(checkpoint, depth)
        cli("quantize", checkpoint, "--method", "nf4", *arch, "--no-export", "-o", folder / "nf4")
        processes = 3 if bench.quick else 15
        before = copy_bandwidth()
        report = cli("bench", checkpoint, folder / "nf4", "--runtime", "torch", *arch, "--processes", processes)
        copied = max(before, copy_bandwidth())
    found, speedup = figure(report, "latency_p50"), figure(report, "speedup")
    weights = 2 * depth * WIDTH * HIDDEN
    share = weights * NF4_BYTES / (found.value / 1e3) / copied
    bench.row(
        "NF4, one token under torch, of copy bandwidth", f"≥ {LEAST_BANDWIDTH}", f"{share:.2f}", found.n,
        f"copy: {copied / 1e9:.1f} GB/s", share >= LEAST_BANDWIDTH,
    )  # fmt: skip
    bench.row(
        "NF4, one token, speed-up over float32 under torch", "", f"{speedup.value:.2f}×", speedup.n, interval(speedup)
    )
    for index, name in ((0, "float32"), (1, "NF4")):
        timed = figure(report, "latency_p50", index)
        bench.row(f"{name}, one token under torch", "", f"{timed.value:.2f} ms", timed.n, interval(timed))


def make_mlp(checkpoint: Path, depth: int) -> tuple[str, ...]:
    """Write the checkpoint; the options that name its architecture."""
    # In a process of its own, as all that follows: a torch in this one would compete with what is timed.
    subprocess.run([sys.executable, "-c", MAKE, checkpoint, str(depth)], cwd=ROOT, check=True)
    return "--arch", "examples/mlp.py:mlp", "--arch-args", f'{{"depth": {depth}}}', "--input-shape", f"1,{WIDTH}"


def copy_bandwidth() -> float:
    """Bytes read and written in a second by a copy that is larger than the caches, on all cores."""
    done = subprocess.run([sys.executable, "-c", COPY, str(cores())], check=True, capture_output=True, text=True)
    return float(done.stdout)


def rounding(bench: Bench, depth: int) -> None:
    import torch

    from compresskit.ops.packed.grid import Grid
    from compresskit.ops.quantize.rtn import quantize_rtn

    torch.set_num_threads(cores())
    weights = make_weights(depth)
    tensors = [torch.from_numpy(weight) for weight in weights]
    grid = Grid(4, 32, symmetric=False)

    def ours(clip: bool) -> float:
        start = time.perf_counter()
        for tensor in tensors:
            quantize_rtn(tensor, grid, clip=clip)
        return time.perf_counter() - start

    methods: dict[str, Callable[[], float]] = {
        "onnxruntime": partial(theirs, weights),
        "plain": partial(ours, False),
        "clipped": partial(ours, True),
    }
    for method in methods.values():
        method()
    times: dict[str, list[float]] = {name: [] for name in methods}
    rounds = 2 if bench.quick else 9
    for turn in range(rounds):
        for name in list(methods) if turn % 2 else reversed(methods):
            times[name].append(methods[name]())
    bars = {"plain": ("plain rounding", LEAST_PLAIN), "clipped": ("MSE-clipped rounding", LEAST_CLIPPED)}
    for name, (what, least) in bars.items():
        value, half = ratio(times["onnxruntime"], times[name])
        bench.row(
            f"{what}, {len(weights)} weights, speed over MatMulNBitsQuantizer", f"≥ {least:g}×", f"{value:.2f}×",
            rounds, half, value >= least,
        )  # fmt: skip
    for name, own in times.items():
        title = {"onnxruntime": "MatMulNBitsQuantizer"}.get(name) or bars[name][0]
        bench.row(f"{title}, {len(weights)} weights", "", f"{np.median(own):.2f} s", rounds, spread(own))


def make_weights(depth: int) -> list[np.ndarray]:
    """float32 ``(outputs, inputs)``, two for each block."""
    rng = np.random.default_rng(0)
    shapes = [(HIDDEN, WIDTH), (WIDTH, HIDDEN)] * depth
    return [rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02) for shape in shapes]


def theirs(weights: list[np.ndarray]) -> float:
    """Seconds of onnxruntime's quantizer on a chain of MatMuls; building the graph isn't counted."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.disable(logging.CRITICAL)
    quantizer = MatMulNBitsQuantizer(chain(weights), block_size=32, is_symmetric=False, accuracy_level=4)
    start = time.perf_counter()
    quantizer.process()
    return time.perf_counter() - start


def chain(weights: list[np.ndarray]) -> Any:
    """An ONNX model that multiplies by one weight after the other."""
    from onnx import TensorProto, helper, numpy_helper

    last, nodes, stored = "x", [], []
    for i, weight in enumerate(weights):
        stored.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"], name=f"m{i}"))
        last = f"h{i}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, WIDTH])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


if __name__ == "__main__":
    main()
