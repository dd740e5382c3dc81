"""A network of ResNet-50's shape: static int8 against float32 at batch 1 and 8, under onnxruntime and OpenVINO.

Weights are random (``resnet50.py``), so only speed, size and likeness are shown. The same int8 file runs under both
engines; the baseline is always onnxruntime's float32.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from harness import Bench, cli, figure, interval, megabytes, workplace
from resnet50 import PARAMETERS, settled

ARCH = ("--arch", "benchmarks/resnet50.py:resnet50", "--input-shape", "1,3,224,224")
CALIBRATION = 32
LEAST = {1: 1.8, 8: 3.0}
LEAST_BEST, MOST_BYTES = 3.5, 1.15


def main() -> None:
    bench = Bench("ResNet-50 shape", __doc__ or "")
    with workplace() as folder:
        model, images = folder / "resnet50.pt", folder / "images.npz"
        torch.save(settled().state_dict(), model)
        rng = np.random.default_rng(1)
        count = 4 if bench.quick else CALIBRATION
        np.savez(images, x=rng.standard_normal((count, 3, 224, 224), dtype=np.float32))
        cli("export", model, *ARCH, "-o", folder / "fp32.onnx")
        int8 = cli(
            "quantize", model, *ARCH, "--method", "int8-static", "--data", images, "--no-bench", "-o", folder / "int8"
        )
        likeness = figure(int8, "cosine")
        bench.row("int8, cosine to float32, random images", "", f"{likeness.value:.4f}", likeness.n)
        share = megabytes(folder / "int8" / "model.onnx") * 1e6 / PARAMETERS
        bench.row("int8, bytes a parameter", f"≤ {MOST_BYTES}", f"{share:.3f}", 1, passed=share <= MOST_BYTES)
        for batch in (1,) if bench.quick else (1, 8):
            speed(bench, folder, batch)
    bench.end()


def speed(bench: Bench, folder: Path, batch: int) -> None:
    """One batch size under each engine; the fastest of them has a bar of its own."""
    engines = ["onnxruntime", *(["openvino"] if find_spec("openvino") else [])]
    runtimes = [word for engine in engines for word in ("--runtime", engine)]
    processes = 2 if bench.quick else 5
    report = cli("bench", folder / "fp32.onnx", folder / "int8", *runtimes, "--batch", batch, "--processes", processes)
    found = {m.model: m for m in report.measurements if m.name == "speedup"}
    for name, speedup in found.items():
        plain = "int8" in name and "openvino" not in name
        bar = LEAST[batch] if plain else None
        bench.row(
            f"{name}, speed-up over onnxruntime float32, batch {batch}", f"≥ {bar}×" if bar else "",
            f"{speedup.value:.2f}×", speedup.n, interval(speedup), speedup.value >= bar if bar else None,
        )  # fmt: skip
    best = max(found.values(), key=lambda m: m.value)
    bench.row(
        f"int8 under the best engine, batch {batch}", f"≥ {LEAST_BEST}×", f"{best.value:.2f}×", best.n,
        interval(best), best.value >= LEAST_BEST,
    )  # fmt: skip


if __name__ == "__main__":
    main()
