"""ResNet-56 on CIFAR-10 with early exits: accuracy and mean latency of the deployed file, on real images.

The figures come from ``compresskit route --method exits`` and ``compresskit compare --data``. The heads, two
convolutions and a Linear layer each, see training images and learn from the last exit, without labels; the body stays
as it is. The network was trained on these images and is sure of all of them, so the thresholds are calibrated on 4,000
test images, and all figures are of the other 5,886. Latency is under onnxruntime with one thread against the original's
export, both on the same images in turns; the speed-up is of means.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from cifar import NORMALIZE
from harness import Bench, cli, figure, gate, interval, workplace

from compresskit.report import Report

EXITS = "ResNet-56, early exits"
TRAINED, CALIBRATED = 20_000, 4_000
BATCHES = (1, 8)


def main() -> None:
    bench = Bench("routing", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with workplace() as folder:
        if bench.wants(EXITS):
            exits(bench, folder)
    bench.end()


def exits(bench: Bench, folder: Path) -> None:
    model, arch = bench.data("models", "resnet56.th"), ("--arch", "examples/cifar_resnet.py:resnet56")
    seen, held, rest = parts(bench, folder)
    blocks = [word for name in ("layer2.1", "layer2.5", "layer3.1") for word in ("--include", name)]
    start = time.perf_counter()
    report = cli(
        "route", model, *arch, "--input-shape", "1,3,32,32", "--method", "exits", *blocks, "--convolutions", 2,
        "--hidden", 0, "--epochs", 1 if bench.quick else 8, "--calibrate-on", "last", "--calibration", held,
        "--max-drop", "30pt" if bench.quick else "0.3pt", "--data", seen, "--eval-data", rest, "--normalize", NORMALIZE,
        "--no-bench", "-o", folder / "routed",
    )  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    drop = gate(report, "accuracy drop")
    score = figure(report, "accuracy")
    bench.row(
        f"{EXITS}, drop of accuracy", "≤ 0.5 pt", f"{drop.value:.2f} pt", score.n,
        f"{drop.reason}; {minutes:.1f} min", drop.value <= 0.5,
    )  # fmt: skip
    original = folder / "resnet56.onnx"
    cli("export", model, *arch, "--input-shape", "1,3,32,32", "-o", original)
    for batch in BATCHES:
        found = cli(
            "compare", original, folder / "routed", "--data", rest, "--normalize", NORMALIZE, "--batch", batch,
            "--threads", 1,
        )  # fmt: skip
        faster, n = figure(found, "speedup"), found.values("leave_1")["routed"].n
        least = 1.4 if batch == 1 else None
        bench.row(
            f"{EXITS}, mean latency at batch {batch}", f"≥ {least}×" if least else "", f"{faster.value:.2f}×", faster.n,
            f"{interval(faster)}; {latencies(found)}", None if least is None else faster.value >= least,
        )  # fmt: skip
        shares = [m for m in found.measurements if m.name.startswith("leave_")]
        told = ", ".join(f"{share.value:.0f} %" for share in shares)
        bench.row(f"{EXITS}, share that leaves at each exit, batch {batch}", "", told, n)


def latencies(report: Report) -> str:
    """p50, p99 and mean of the original and the result, ms."""
    found = []
    for name in ("p50", "p99", "mean"):
        before, after = (figure(report, f"latency_{name}", model).value for model in (0, 1))
        found.append(f"{name} {before:.2f} to {after:.2f} ms")
    return ", ".join(found)


def parts(bench: Bench, folder: Path) -> tuple[Path, int, Path]:
    """A file of training images with test images at its end, how many these are, and a file of the others."""
    train, test = (np.load(bench.data("cifar10", f"{name}.npz")) for name in ("train", "test"))
    trained, held = (400, 200) if bench.quick else (TRAINED, CALIBRATED)
    order = np.random.default_rng(0).permutation(len(train["x"]))[:trained]
    mixed = np.random.default_rng(1).permutation(len(test["x"]))
    apart, rest = mixed[:held], mixed[held : held + 300] if bench.quick else mixed[held:]
    np.savez(
        folder / "seen.npz", x=np.concatenate([train["x"][order], test["x"][apart]]),
        y=np.concatenate([train["y"][order], test["y"][apart]]),
    )  # fmt: skip
    np.savez(folder / "rest.npz", x=test["x"][rest], y=test["y"][rest])
    return folder / "seen.npz", held, folder / "rest.npz"


if __name__ == "__main__":
    main()
