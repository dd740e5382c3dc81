"""ResNet-20 and -56 on CIFAR-10 with a fitted layer in the place of some of their blocks, without training.

The figures come from ``compresskit substitute --method collapse``: accuracy of the shipped ONNX file on the test
images, and its speed under onnxruntime against the original's, one thread, at batch 1. Layers are fitted on training
images, without labels. Bars lie above what a trial gave in which nothing behind a replaced block was fitted again:
89.5 % and 87.1 % with two and three 3×3, 81.8 % and 76.4 % with 1×1; ResNet-56 with six and nine 1×1 90.2 % and
85.7 %, with twelve 80.1 %.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from cifar import NORMALIZE, accuracy_row
from harness import Bench, cli, figure, interval, workplace


@dataclass(frozen=True)
class Case:
    """A model with some blocks replaced.

    Attributes:
        depth: Of the ResNet.
        count: Blocks.
        stand_in: What replaces them.
        least: The bar of its accuracy.
        latency: Share of the original's time that is asked for.
        speedup: The bar of its speed.
    """

    depth: int
    count: int
    stand_in: str
    least: float
    latency: float | None = None
    speedup: float | None = None

    @property
    def name(self) -> str:
        return f"ResNet-{self.depth}, {self.count} blocks as {self.stand_in}"


CASES = (
    Case(20, 2, "3x3", 90.0),
    Case(20, 3, "3x3", 88.5),
    Case(20, 2, "1x1", 84.0),
    Case(20, 3, "1x1", 79.0),
    Case(56, 6, "1x1", 91.0),
    Case(56, 9, "1x1", 88.5),
    Case(56, 12, "auto", 88.0, latency=0.7, speedup=1.4),
)


def main() -> None:
    bench = Bench("substitute", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with workplace() as folder:
        for case in CASES:
            if bench.wants(case.name) and bench.known(f"{case.name}, accuracy") is None:
                substituted(bench, case, folder / f"{case.depth}-{case.count}-{case.stand_in}")
    bench.end()


def substituted(bench: Bench, case: Case, out: Path) -> None:
    model = bench.data("models", f"resnet{case.depth}.th")
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    arch = ("--arch", f"examples/cifar_resnet.py:resnet{case.depth}", "--input-shape", "1,3,32,32")
    target = () if case.latency is None else ("--target-latency", case.latency)
    start = time.perf_counter()
    report = cli(
        "substitute", model, *arch, "--stand-in", case.stand_in, "--count", case.count, *target, "--samples",
        64 if bench.quick else 512, "--data", train, "--eval-data", test, "--normalize", NORMALIZE, "--no-bench",
        "-o", out,
    )  # fmt: skip
    accuracy_row(bench, case.name, case.least, report, (time.perf_counter() - start) / 60)
    original = out.parent / f"resnet{case.depth}.onnx"
    if not original.exists():
        cli("export", model, *arch, "-o", original)
    found = figure(cli("bench", original, out / "model.onnx", "--batch", 1, "--threads", 1), "speedup")
    bar, passed = (f"≥ {case.speedup}×", found.value >= case.speedup) if case.speedup is not None else ("", None)
    bench.row(f"{case.name}, speed", bar, f"{found.value:.2f}×", found.n, interval(found), passed)


if __name__ == "__main__":
    main()
