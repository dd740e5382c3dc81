"""ResNet-20 and -56 on CIFAR-10 with half of the multiply-accumulates, cut at once; bench_prune_trained.py trains on.

The figures come from ``compresskit prune --target-macs 0.5``: accuracy of the shipped ONNX file on the test images, and
its speed under onnxruntime against the original's, one thread, at batch 1 and 16. ``one-shot`` chooses channels and
fits layers again on 512 training images, without labels and without training. Rows without a bar are other ways of
choosing, for comparison.

Two ways to be faster at the same count are measured too. Widths are multiples of 8, but kernels that compute 16
channels at once (AVX-512) do no less work for 24 than for 32: widths in multiples of 16. The other way round, widths
that are no multiples at all are nearer to the original and slower. And with two or three blocks taken out first
(``prune --method depth``) there are fewer layers to wait for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from cifar import NORMALIZE, accuracy_row, speed_rows, without_blocks
from harness import Bench, cli, workplace

LEAST, LEAST_SPEEDUP = 60.0, 1.6
ROUNDED = {16: "widths in multiples of 16", 1: "of any width"}
SHALLOW = {2: "without two blocks", 3: "without three blocks"}
OTHERS = {
    "l2, isomorphic, without refit": ("--importance", "l2", "--ranking", "isomorphic", "--no-refit"),
    "l2, isomorphic, with refit": ("--importance", "l2", "--ranking", "isomorphic"),
    "reconstruction, global": ("--ranking", "global"),
}


def main() -> None:
    bench = Bench("ResNet channels", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with workplace() as folder:
        for depth in (20,) if bench.quick else (20, 56):
            out = folder / f"cut{depth}"
            pruned(bench, depth, f"ResNet-{depth} one-shot", LEAST if depth == 20 else None, out)
        cuts = {"": folder / "cut20"}
        for multiple, what in ROUNDED.items():
            cuts[f", {what}"] = folder / f"cut20-{multiple}"
            pruned(bench, 20, f"ResNet-20 one-shot, {what}", None, cuts[f", {what}"], "--round-to", multiple)
        for blocks, what in SHALLOW.items():
            cuts[f", {what}"] = folder / f"cut20-without{blocks}"
            pruned(bench, 20, f"ResNet-20 one-shot, {what}", None, cuts[f", {what}"], blocks=blocks)
        for name, cut in ((f"ResNet-20 one-shot{what}", cut) for what, cut in cuts.items()):
            if cut.exists():
                speed_rows(bench, name, cut, LEAST_SPEEDUP)
        for number, (name, options) in enumerate(OTHERS.items() if not bench.quick else ()):
            pruned(bench, 20, f"ResNet-20 one-shot, {name}", None, folder / f"other{number}", *options)
    bench.end()


def pruned(
    bench: Bench, depth: int, name: str, least: float | None, out: Path, *options: str | float, blocks: int = 0
) -> None:
    if not bench.wants(name):
        return
    model, arch = bench.data("models", f"resnet{depth}.th"), f"examples/cifar_resnet.py:resnet{depth}"
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    start, left = time.perf_counter(), 1.0
    if blocks:
        model, left = without_blocks(bench, depth, blocks, out.parent / f"{out.name}-before")
    report = cli(
        "prune", model, "--target-macs", 0.5 / left, *options, "--arch", arch, "--input-shape", "1,3,32,32",
        "--data", train, "--eval-data", test, "--normalize", NORMALIZE, "--no-bench", "-o", out,
    )  # fmt: skip
    accuracy_row(bench, name, least, report, (time.perf_counter() - start) / 60, left)


if __name__ == "__main__":
    main()
