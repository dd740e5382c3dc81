"""ResNet-20 on CIFAR-10 with weights as palettes of 4 and 3 bits, against rounding to nearest at equal bytes.

The figures come from ``compresskit quantize``: accuracy of the shipped ONNX file on the test images with onnxruntime.
Palettes see 512 training images without labels; rounding sees none. Nothing is trained. Bytes are those of the file.
"""

from __future__ import annotations

import time

from cifar import NORMALIZE
from harness import Bench, cli, figure, interval, workplace

LEAST = {4: 91.3, 3: 89.5}
SAMPLES = 512


def main() -> None:
    bench = Bench("Sharing", __doc__ or "", data=True)
    for bits in (4, 3):
        palettes(bench, bits)
    bench.end()


def palettes(bench: Bench, bits: int) -> None:
    samples = 32 if bench.quick else SAMPLES
    given = ("--data", bench.data("cifar10", "train.npz"), "--samples", samples)
    found, size, minutes = quantized(bench, "palette", bits, *given)
    rounded, rounded_size, _ = quantized(bench, "rtn", bits)
    name, least = f"ResNet-20 palette of {bits} bits, {SAMPLES} images", LEAST[bits]
    bench.row(
        f"{name}, accuracy", f"≥ {least} %", f"{found.value:.3f} %", found.n,
        f"{interval(found)}; {size / 1e3:.0f} kB, {minutes:.1f} min", found.value >= least,
    )  # fmt: skip
    bench.row(
        f"{name}, over rtn", "> 0 pt at equal bytes", f"{found.value - rounded.value:+.3f} pt", found.n,
        f"rtn {rounded.value:.3f} %, {rounded_size / size:.3f} of the bytes",
        found.value > rounded.value and size <= 1.01 * rounded_size,
    )  # fmt: skip


def quantized(bench: Bench, method: str, bits: int, *options: object):
    """Accuracy of the shipped file, its bytes, and minutes of the command."""
    with workplace() as folder:
        start = time.perf_counter()
        report = cli(
            "quantize", bench.data("models", "resnet20.th"), "--arch", "examples/cifar_resnet.py:resnet20",
            "--input-shape", "1,3,32,32", "--method", method, "--bits", bits, *options,
            "--eval-data", bench.data("cifar10", "test.npz"), "--normalize", NORMALIZE, "--no-bench",
            "-o", folder / "out",
        )  # fmt: skip
        minutes = (time.perf_counter() - start) / 60
    return figure(report, "accuracy"), report.models[-1].bytes, minutes


if __name__ == "__main__":
    main()
