"""ResNet-20 and -56 on CIFAR-10 with fewer multiply-accumulates, trained on for 6 to 15 epochs against the original.

The figures come from ``compresskit prune --target-macs … --epochs …``: accuracy of the shipped ONNX file on the test
images, after the last epoch. The teacher's part was chosen on 2,000 held-out training images in runs of 5 epochs, the
number of samples for ranking and refit on 8,000 such without training; both favour what stays close to the original,
since that was trained on them. The learning rate is the default. The test images have no part in any choice. Seeds
order and augment the training images.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from cifar import NORMALIZE
from harness import Bench, cli, figure, interval, workplace

TRAINING = ("--teacher-share", 0.9, "--temperature", 4, "--precision", "bfloat16", "--held-out", 0, "--samples", 4096)
CASES = {
    "ResNet-20, 2.0×": (20, 0.5, 15, 90.9, 3),
    "ResNet-20, 1.37×": (20, 0.73, 10, 91.5, 1),
    "ResNet-56, 2.11×": (56, 0.4739, 6, 92.9, 1),
}
"""Depth, share of MACs, epochs, bar in %, seeds."""


def main() -> None:
    bench = Bench("ResNet channels, trained", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    for case, (depth, share, epochs, least, seeds) in CASES.items():
        if not bench.wants(case):
            continue
        found: list[float] = []
        with workplace() as folder:
            for seed in range(1 if bench.quick else seeds):
                found.append(trained(bench, case, depth, share, epochs, seed, folder))
                mean = float(np.mean(found))
                deviation = f"sd {np.std(found, ddof=1):.2f}" if len(found) > 1 else "one seed"
                bench.row(f"{case} fewer MACs", f"≥ {least} %", f"{mean:.2f} %", len(found), deviation, mean >= least)
    bench.end()


def trained(bench: Bench, case: str, depth: int, share: float, epochs: int, seed: int, folder: Path) -> float:
    row = f"{case} fewer MACs, seed {seed}"
    if (known := bench.known(row)) is not None:
        return float(known.removesuffix(" %"))
    model, arch = bench.data("models", f"resnet{depth}.th"), f"examples/cifar_resnet.py:resnet{depth}"
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    length = ("--epochs", 1, "--train-samples", 1000) if bench.quick else ("--epochs", epochs)
    report = cli(
        "prune", model, "--target-macs", share, *length, *TRAINING, "--arch", arch, "--input-shape", "1,3,32,32",
        "--data", train, "--eval-data", test, "--normalize", NORMALIZE, "--no-bench", "--seed", seed,
        "-o", folder / "out", "--force",
    )  # fmt: skip
    found, (before, after) = figure(report, "accuracy"), report.models
    macs = (before.macs or 0) / (after.macs or 1)
    bench.row(
        row, "", f"{found.value:.3f} %", found.n,
        f"{interval(found)}; {macs:.2f}× fewer MACs, {after.bytes / 1e3:.0f} kB",
    )  # fmt: skip
    return found.value


if __name__ == "__main__":
    main()
