"""ResNet-20 and -56 on CIFAR-10: accuracy in float32, 8 and 4 bit, speed-up of static int8, and ONNX parity of each.

The figures come from ``compresskit evaluate``, ``quantize`` and ``bench``. int8 is calibrated on the first 512 training
images; 4 bit sees no data. Everything runs under onnxruntime, batch 1, one thread a physical core.
"""

from __future__ import annotations

from pathlib import Path

from cifar import NORMALIZE
from harness import Bench, cli, figure, gate, interval, workplace

CALIBRATION = 512
KNOWN = {20: 91.695, 56: 93.344}
LEAST_4BIT = {20: 90.3}
MOST_LOST, LEAST_SPEEDUP = 0.15, 1.7


def main() -> None:
    bench = Bench("ResNet", __doc__ or "", data=True)
    test, train = bench.data("cifar10", "test.npz"), bench.data("cifar10", "train.npz")
    for depth in (20,) if bench.quick else (20, 56):
        one_depth(bench, depth, bench.data("models", f"resnet{depth}.th"), test, train)
    bench.end()


def one_depth(bench: Bench, depth: int, model: Path, test: Path, train: Path) -> None:
    name = f"ResNet-{depth}"
    arch = ("--arch", f"examples/cifar_resnet.py:resnet{depth}", "--input-shape", "1,3,32,32")
    evaluated = ("--normalize", NORMALIZE, "--eval-data", test, "--no-bench")
    with workplace() as folder:
        exported = cli("export", model, *arch, "-o", folder / "fp32.onnx")
        parity(bench, f"{name} float32", gate(exported, "ONNX parity").value)
        found = figure(cli("evaluate", folder / "fp32.onnx", "--data", test, "--normalize", NORMALIZE), "accuracy")
        same = round(found.value, 3) == KNOWN[depth]
        bench.row(f"{name} float32, accuracy", f"= {KNOWN[depth]} %", f"{found.value:.3f} %", found.n, passed=same)
        int8 = cli(
            "quantize", model, "--bits", 8, "--data", train, "--samples", CALIBRATION, *arch, *evaluated,
            "-o", folder / "int8",
        )  # fmt: skip
        lost = found.value - figure(int8, "accuracy").value
        bench.row(
            f"{name} int8, accuracy lost, {CALIBRATION} calibration images", f"≤ {MOST_LOST} pt", f"{lost:.3f} pt",
            found.n, gate(int8, "accuracy drop").reason.partition("samples, ")[2], lost <= MOST_LOST,
        )  # fmt: skip
        likeness = figure(int8, "cosine")
        bench.row(f"{name} int8, cosine to float32", "", f"{likeness.value:.4f}", likeness.n, interval(likeness, 4))
        int4 = cli("quantize", model, "--bits", 4, *arch, *evaluated, "-o", folder / "int4")
        parity(bench, f"{name} 4 bit", gate(int4, "ONNX parity").value)
        accuracy_4bit(bench, name, figure(int4, "accuracy"), LEAST_4BIT.get(depth))
        sizes = [f"{entry.bytes / 1e6:.2f}" for entry in (int8.models[0], int8.models[1], int4.models[1])]
        bench.row(f"{name} size of model.onnx, float32 / int8 / 4 bit", "", f"{' / '.join(sizes)} MB", 1)
        processes = 3 if bench.quick else 21
        files = [folder / "fp32.onnx", folder / "int8", folder / "int4"]
        timed = cli("bench", *files, "--processes", processes)
        for index, what in ((1, "int8"), (2, "4 bit")):
            speedup = figure(timed, "speedup", index)
            bar = f"≥ {LEAST_SPEEDUP}×" if what == "int8" else ""
            passed = speedup.value >= LEAST_SPEEDUP if bar else None
            bench.row(
                f"{name} {what}, speed-up over float32, batch 1", bar, f"{speedup.value:.2f}×", speedup.n,
                interval(speedup), passed,
            )  # fmt: skip


def parity(bench: Bench, name: str, relative: float) -> None:
    """The gate's own figure; a miss would have ended the export."""
    bench.row(f"{name}, ONNX against torch, relative L2", "≤ 1e-5", f"{relative:.1e}", 32, passed=relative <= 1e-5)


def accuracy_4bit(bench: Bench, name: str, found, least: float | None) -> None:
    bench.row(
        f"{name} 4 bit weights, accuracy, no calibration", f"≥ {least} %" if least else "", f"{found.value:.3f} %",
        found.n, interval(found), found.value >= least if least else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
