"""What the benchmarks on CIFAR-10 share: the data's normalization, and the rows of a smaller ResNet-20."""

from __future__ import annotations

from pathlib import Path

from harness import Bench, cli, figure, interval

from compresskit.report import Report

NORMALIZE = ".485,.456,.406/.229,.224,.225"
BATCHES = (1, 16)


def without_blocks(
    bench: Bench, depth: int, blocks: int, out: Path, *options: str | Path | float
) -> tuple[Path, float]:
    """A ResNet without as many blocks, chosen on 512 training images; and the share of its MACs that is left."""
    report = cli(
        "prune", bench.data("models", f"resnet{depth}.th"), "--arch", f"examples/cifar_resnet.py:resnet{depth}",
        "--input-shape", "1,3,32,32", "--method", "depth", "--drop", blocks, "--samples", 512, "--data",
        bench.data("cifar10", "train.npz"), "--normalize", NORMALIZE, "--no-bench", *options, "-o", out,
    )  # fmt: skip
    return out, share(report)


def share(report: Report) -> float:
    """The share of the multiply-accumulates that a command left of its model."""
    before, after = report.models
    return (after.macs or 0) / (before.macs or 1)


def accuracy_row(
    bench: Bench, name: str, least: float | None, report: Report, minutes: float, left: float = 1.0
) -> None:
    """Accuracy of the shipped file, with its size and the time of the whole command.

    Args:
        bench: Where it is recorded.
        name: Of the row.
        least: The bar, if there is one.
        report: Of the command.
        minutes: That it took.
        left: Share of the original's multiply-accumulates that the command's model had.
    """
    found, after = figure(report, "accuracy"), report.models[1]
    macs = left * share(report)
    about = f"{interval(found)}; {100 * macs:.1f} % of the MACs, {after.bytes / 1e3:.0f} kB, {minutes:.1f} min"
    bar, passed = (f"≥ {least} %", found.value >= least) if least is not None else ("", None)
    bench.row(f"{name}, accuracy", bar, f"{found.value:.3f} %", found.n, about, passed)


def speed_rows(bench: Bench, name: str, bundle: Path, least: float | None = None) -> None:
    """Speed of a bundle under onnxruntime against the export of ResNet-20, one thread."""
    model, original = bench.data("models", "resnet20.th"), bundle.parent / f"{bundle.name}-original.onnx"
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    cli("export", model, *arch, "-o", original)
    for batch in BATCHES:
        found = figure(cli("bench", original, bundle / "model.onnx", "--batch", batch, "--threads", 1), "speedup")
        bar, passed = (f"≥ {least}×", found.value >= least) if least is not None else ("", None)
        bench.row(f"{name}, speed at batch {batch}", bar, f"{found.value:.2f}×", found.n, interval(found), passed)
