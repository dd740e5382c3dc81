"""ResNet-20 and -56 on CIFAR-10 with half of the multiply-accumulates, cut at once; bench_prune_trained.py trains on.

The figures come from ``compresskit prune --target-macs 0.5``: accuracy of the shipped ONNX file on the test images, and
its speed under onnxruntime against the original's, one thread, at batch 1 and 16. ``one-shot`` chooses channels and
fits layers again on 512 training images, without labels and without training. Rows without a bar are other ways of
choosing, for comparison. Widths are multiples of 8; kernels that compute 16 channels at once (AVX-512) do no less work
for 24 than for 32, so the speed of multiples of 16 is measured too.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from harness import Bench, cli, figure, interval, workplace

NORMALIZE = ".485,.456,.406/.229,.224,.225"
LEAST, LEAST_SPEEDUP = 60.0, 1.6
BATCHES = (1, 16)
SIXTEEN = "widths in multiples of 16"
OTHERS = {
    "l2, isomorphic, without refit": ("--importance", "l2", "--ranking", "isomorphic", "--no-refit"),
    "l2, isomorphic, with refit": ("--importance", "l2", "--ranking", "isomorphic"),
    "reconstruction, global": ("--ranking", "global"),
}


def main() -> None:
    bench = Bench("ResNet channels", __doc__ or "", data=True)
    os.environ["OMP_NUM_THREADS"] = "2"
    with workplace() as folder:
        for depth in (20,) if bench.quick else (20, 56):
            out = folder / f"cut{depth}"
            pruned(bench, depth, f"ResNet-{depth} one-shot", LEAST if depth == 20 else None, out)
        wide = folder / "cut20-16"
        pruned(bench, 20, f"ResNet-20 one-shot, {SIXTEEN}", None, wide, "--round-to", 16)
        fast(bench, folder / "cut20", "")
        fast(bench, wide, f", {SIXTEEN}")
        for number, (name, options) in enumerate(OTHERS.items() if not bench.quick else ()):
            pruned(bench, 20, f"ResNet-20 one-shot, {name}", None, folder / f"other{number}", *options)
    bench.end()


def pruned(bench: Bench, depth: int, name: str, least: float | None, out: Path, *options: str | float) -> None:
    model, arch = bench.data("models", f"resnet{depth}.th"), f"examples/cifar_resnet.py:resnet{depth}"
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    start = time.perf_counter()
    report = cli(
        "prune", model, "--target-macs", 0.5, *options, "--arch", arch, "--input-shape", "1,3,32,32", "--data", train,
        "--eval-data", test, "--normalize", NORMALIZE, "--no-bench", "-o", out,
    )  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    found, (before, after) = figure(report, "accuracy"), report.models
    macs = (after.macs or 0) / (before.macs or 1)
    about = f"{interval(found)}; {100 * macs:.1f} % of the MACs, {after.bytes / 1e3:.0f} kB, {minutes:.1f} min"
    bar, passed = (f"≥ {least} %", found.value >= least) if least is not None else ("", None)
    bench.row(f"{name}, accuracy", bar, f"{found.value:.3f} %", found.n, about, passed)


def fast(bench: Bench, bundle: Path, which: str) -> None:
    """Speed of the cut model against the export of the original."""
    model, original = bench.data("models", "resnet20.th"), bundle.parent / "original.onnx"
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    cli("export", model, *arch, "-o", original)
    for batch in BATCHES:
        found = figure(cli("bench", original, bundle / "model.onnx", "--batch", batch, "--threads", 1), "speedup")
        name = f"ResNet-20 one-shot{which}, speed at batch {batch}"
        bench.row(
            name, f"≥ {LEAST_SPEEDUP}×", f"{found.value:.2f}×", found.n, interval(found), found.value >= LEAST_SPEEDUP
        )


if __name__ == "__main__":
    main()
