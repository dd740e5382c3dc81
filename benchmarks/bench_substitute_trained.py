"""ResNet-20 on CIFAR-10 with cheaper layers in the place of some of its own, then trained.

Fitted 3×3 layers stand in for three blocks (``substitute --method collapse``), then channels go (``prune``) until the
model is about 1.8 times as fast as the original under onnxruntime, and then the original teaches it (``distill``). The
bar is what the same training gave at that speed with three blocks dropped instead: 91.19 %.

Depthwise layers, two a channel, stand in for all convolutions but the first (``substitute --method depthwise``). Beside
it stands a ResNet-20 with as many channels less as bring it to the same measured latency. Both are trained alike, for 5
epochs: torch takes three minutes for one of depthwise layers on one core.

Training is that of ``bench_prune_trained.py``: Muon at a rate of 0.02, which was chosen there. Figures are those of the
shipped ONNX file: accuracy on the test images after the last epoch, and speed at batch 1 with one thread. The shares of
multiply-accumulates that give these speeds were found by trying a few without training. Seeds order and augment the
training images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cifar import NORMALIZE
from harness import Bench, cli, figure, interval, workplace

SEEDS, LEAST = 3, 91.4
NARROWER = ("--samples", 4096, "--round-to", 8)


class Case(NamedTuple):
    """A ResNet-20 to be trained.

    Attributes:
        epochs: Of the training.
        substitute: Options of the substitution; none where nothing is replaced.
        macs: Share of the multiply-accumulates that pruning leaves after it; 1 where no channels go.
        seeds: Runs of the training.
        least: The bar of the mean accuracy, in %.
    """

    epochs: int
    substitute: tuple[str | float, ...] = ()
    macs: float = 1.0
    seeds: int = 1
    least: float | None = None


CASES = {
    "ResNet-20, three blocks as 3×3, then channels, 15 epochs": Case(
        15, ("--stand-in", "3x3", "--count", 3, "--samples", 512), 0.55, SEEDS, LEAST
    ),
    "ResNet-20, depthwise, multiplier 2, 5 epochs": Case(
        5, ("--method", "depthwise", "--exclude", "conv1", "--guard", "size", "--samples", 512)
    ),
    "ResNet-20, pruned to the latency of depthwise layers, 5 epochs": Case(5, macs=0.35),
}


def main() -> None:
    bench = Bench("substitute, trained", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    for name, case in CASES.items():
        if not bench.wants(name):
            continue
        with workplace() as folder:
            found = [accuracy(bench, name, case, seed, folder) for seed in range(1 if bench.quick else case.seeds)]
        mean = float(np.mean(found))
        spread = f"sd {np.std(found, ddof=1):.2f}" if len(found) > 1 else "one seed"
        bar, passed = (f"≥ {case.least} %", mean >= case.least) if case.least is not None else ("", None)
        bench.row(name, bar, f"{mean:.2f} %", len(found), spread, passed)
    bench.end()


def accuracy(bench: Bench, name: str, case: Case, seed: int, folder: Path) -> float:
    """Accuracy in % of one seed's model; the first seed's speed is recorded too."""
    row = f"{name}, seed {seed}"
    if (known := bench.known(row)) is not None:
        return float(known.removesuffix(" %"))
    model, train = bench.data("models", "resnet20.th"), bench.data("cifar10", "train.npz")
    arch = ("--arch", "examples/cifar_resnet.py:resnet20")
    shared = (
        *arch, "--input-shape", "1,3,32,32", "--data", train, "--normalize", NORMALIZE, "--no-bench", "--force",
    )  # fmt: skip
    smaller = model
    if case.substitute:
        cli("substitute", model, *case.substitute, *shared, "-o", folder / "substituted")
        smaller = folder / "substituted"
    if case.macs < 1:
        cli("prune", smaller, "--target-macs", case.macs, *NARROWER, *shared, "-o", folder / "pruned")
        smaller = folder / "pruned"
    length = ("--epochs", 1, "--train-samples", 1000) if bench.quick else ("--epochs", case.epochs)
    report = cli(
        "distill", smaller, "--teacher", model, "--teacher-arch", arch[1], "--method", "kd", "--teacher-share", 0.9,
        "--temperature", 4, "--held-out", 0, *length, "--optimizer", "muon", "--lr", 0.02, "--precision", "bfloat16",
        "--batch-size", 128, "--eval-data", bench.data("cifar10", "test.npz"), "--seed", seed, *shared,
        "-o", folder / "trained",
    )  # fmt: skip
    if seed == 0:
        original = folder / "original.onnx"
        cli("export", model, *arch, "--input-shape", "1,3,32,32", "-o", original)
        speed = figure(cli("bench", original, folder / "trained", "--batch", 1, "--threads", 1), "speedup")
        bench.row(f"{name}, speed", "", f"{speed.value:.2f}×", speed.n, interval(speed))
    found = figure(report, "accuracy")
    bench.row(row, "", f"{found.value:.3f} %", found.n, f"{interval(found)}; {report.models[-1].bytes / 1e3:.0f} kB")
    return found.value


if __name__ == "__main__":
    main()
