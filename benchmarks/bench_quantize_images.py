"""ResNet-20 and -56 on CIFAR-10 with weights of 4, 3 and 2 bits: rounding, learnt rounding, and training on.

The figures come from ``compresskit quantize`` with 2 threads: accuracy of the shipped ONNX file on the test images with
onnxruntime. Learnt rounding (adaround) sees 1,024 training images without labels; qat trains on all 49,441 training
images. First and last layer have 8 bits where the others have 3 or 2. The time is that of the whole command:
calibration or training, export with its parity gate, and both evaluations.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cifar import NORMALIZE
from harness import Bench, cli, figure, interval, workplace

LEAST = {(20, 4): 91.2, (20, 3): 89.0, (20, 2): 88.0, (56, 4): 93.0, (56, 3): 90.5}
LEAST_QAT = 91.5
MINUTES = 5


def main() -> None:
    bench = Bench("ResNet weights", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    for depth, bits in LEAST:
        if bench.wants(f"ResNet-{depth} W{bits}") and (depth == 20 or not bench.quick):
            rounded(bench, depth, bits)
            learnt(bench, depth, bits)
    if bench.wants("ResNet-20 W4 with QAT"):
        trained(bench)
    bench.end()


def rounded(bench: Bench, depth: int, bits: int) -> None:
    found, _, size = quantized(bench, depth, "--method", "rtn", "--bits", bits)
    name = f"ResNet-{depth} W{bits} rounded, accuracy"
    bench.row(name, "", f"{found.value:.3f} %", found.n, f"{interval(found)}; {size}")


def learnt(bench: Bench, depth: int, bits: int) -> None:
    options = ("--steps", 5, "--samples", 64) if bench.quick else ()
    found, minutes, size = quantized(bench, depth, "--method", "adaround", "--bits", bits, *options)
    name, least = f"ResNet-{depth} W{bits} learnt rounding, 1,024 images", LEAST[depth, bits]
    bench.row(
        f"{name}, accuracy", f"≥ {least} %", f"{found.value:.3f} %", found.n, f"{interval(found)}; {size}",
        found.value >= least,
    )  # fmt: skip
    bench.row(f"{name}, time", f"≤ {MINUTES} min", f"{minutes:.1f} min", 1, passed=minutes <= MINUTES)


def trained(bench: Bench) -> None:
    options = ("--epochs", 1, "--samples", 1000) if bench.quick else ()
    found, minutes, size = quantized(bench, 20, "--qat", "--bits", 4, *options)
    name = "ResNet-20 W4 with QAT"
    bench.row(
        f"{name}, accuracy", f"≥ {LEAST_QAT} %", f"{found.value:.3f} %", found.n, f"{interval(found)}; {size}",
        found.value >= LEAST_QAT,
    )  # fmt: skip
    bench.row(f"{name}, time", "", f"{minutes:.1f} min", 1)


def quantized(bench: Bench, depth: int, *options: str | Path | float):
    """Accuracy of the shipped file, minutes of the command, and the file's size."""
    model, arch = bench.data("models", f"resnet{depth}.th"), f"examples/cifar_resnet.py:resnet{depth}"
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    given = ("--data", train) if "rtn" not in options else ()
    with workplace() as folder:
        start = time.perf_counter()
        report = cli(
            "quantize", model, *options, "--arch", arch, "--input-shape", "1,3,32,32", *given, "--eval-data", test,
            "--normalize", NORMALIZE, "--no-bench", "-o", folder / "out",
        )  # fmt: skip
        minutes = (time.perf_counter() - start) / 60
    return figure(report, "accuracy"), minutes, f"{report.models[-1].bytes / 1e3:.0f} kB"


if __name__ == "__main__":
    main()
