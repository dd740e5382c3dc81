"""ResNet-20 on CIFAR-10 with 1.5× fewer multiply-accumulates: convolutions as products of smaller ones.

The figures come from ``compresskit factorize --budget-of macs``: accuracy of the shipped ONNX file on the test images,
and its speed under onnxruntime against the original's, one thread. ``one-shot`` chooses ranks and fits layers on
training images, without labels and without training; ``trained`` goes on for 10 epochs on all training images. Options
were chosen on training images that were held out. A plain Tucker-2 with a refit scored .73 on a JPEG copy of the set.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cifar import NORMALIZE, accuracy_row, speed_rows
from harness import Bench, cli, workplace

BUDGET, SAMPLES = 0.6667, 512
LEAST, LEAST_TRAINED, EPOCHS = 85.0, 91.0, 10
METHODS = {"auto": LEAST, "tucker": None, "spatial": None}


def main() -> None:
    bench = Bench("factorized ResNet-20", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with workplace() as folder:
        for method, least in METHODS.items():
            factorized(bench, f"one-shot, {method}", least, folder / method, "--method", method)
        if (folder / "auto").exists():
            speed_rows(bench, "one-shot", folder / "auto")
        bare = ("--method", "auto", "--no-refit")
        factorized(bench, "one-shot, auto, without refit", None, folder / "bare", *bare)
        length = ("--epochs", 1, "--train-samples", 1000) if bench.quick else ("--epochs", EPOCHS)
        epochs = (*length, "--precision", "bfloat16")
        factorized(bench, f"trained for {epochs[1]} epochs", LEAST_TRAINED, folder / "trained", *epochs)
    bench.end()


def factorized(bench: Bench, name: str, least: float | None, out: Path, *options: str | float) -> None:
    if not bench.wants(name):
        return
    model = bench.data("models", "resnet20.th")
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    start = time.perf_counter()
    report = cli(
        "factorize", model, "--budget", BUDGET, "--budget-of", "macs", *options, "--samples",
        64 if bench.quick else SAMPLES, "--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32",
        "--data", train, "--eval-data", test, "--normalize", NORMALIZE, "--no-bench", "-o", out,
    )  # fmt: skip
    accuracy_row(bench, name, least, report, (time.perf_counter() - start) / 60)


if __name__ == "__main__":
    main()
