"""The recipes that ship, run on real models: size, speed and quality against the original.

ResNet-20 goes through ``edge-int8``, ``collapse-int8`` and ``prune-distill-int8``, MiniLM through ``bert-small``, each
as a user would run it: the recipe's own options, data and model from the command line. ``exits-int8`` runs on ResNet-56
with images at the end of the data that it was not trained on; its mean latency is that on other images. Images are
calibrated and trained on CIFAR-10's training part, MiniLM on lines of WikiText-2's validation split and the texts of
STS-B's training part, without its scores. The other recipes are held to their own verdict: ``edge-4bit`` and
``palette-small`` on ResNet-20, ``cpu-fast`` and ``qlora`` on MiniLM, ``llm-4bit`` on stories260k, ``moe-half`` on a
small mixture trained on letters, ``tiny`` on the network of the demo.

Everything is measured on test data, the ONNX file that ships; speed is onnxruntime's with one thread for the networks
of images, the best engine's for MiniLM.
"""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_minilm import TOKENS, plain_lines
from bench_routing import parts
from cifar import NORMALIZE
from harness import Bench, cli, command, figure, interval, minilm, workplace

from compresskit.report import Report


@dataclass(frozen=True)
class Bars:
    """Times smaller, times faster, points that may be lost or the least figure."""

    smaller: float
    faster: float
    lost: float


Words = tuple[str | Path, ...]


@dataclass(frozen=True)
class Real:
    """A real model for a recipe, and the words that give it and its data."""

    what: str
    metric: str
    words: Callable[[Bench, Path], Words]


IMAGES = {"edge-int8": Bars(3.3, 1.9, 0.1), "collapse-int8": Bars(3.5, 2.3, 1.5), "prune-distill-int8": Bars(6, 3, 0.9)}
TEXT = Bars(5, 3, 80.0)
EXITS = "exits-int8"
ENGINES = ("onnxruntime", "openvino", "openvino-bf16")
SHORT = {
    "prune-distill-int8": ("--set", "steps.2.epochs=1", "--set", "steps.2.train-samples=512"),
    "exits-int8": ("--set", "steps.0.epochs=1", "--set", "steps.0.exit-drop=30pt"),
    "bert-small": ("--set", "steps.0.epochs=1", "--set", "steps.0.train-samples=512"),
}
FASTER = {"prune-distill-int8": ("--set", "steps.2.precision=bfloat16", "--set", "steps.2.held-out=0")}


def main() -> None:
    bench = Bench("recipes", __doc__ or "", data=True)
    with workplace() as folder:
        for name, bars in IMAGES.items():
            if bench.wants(name):
                images(bench, name, bars, folder)
        if bench.wants(EXITS):
            exits(bench, folder)
        if bench.wants("bert-small"):
            text(bench, folder)
        for name, real in OTHERS.items():
            if bench.wants(name):
                other(bench, name, real, folder)
    bench.end()


def images(bench: Bench, name: str, bars: Bars, folder: Path) -> None:
    model, out = bench.data("models", "resnet20.th"), folder / name
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    length = SHORT.get(name, ()) if bench.quick else FASTER.get(name, ())
    start = time.perf_counter()
    report = cli(
        "run", name, model, *arch, "--data", train, "--eval-data", test, "--normalize", NORMALIZE, *length,
        "--no-bench", "--no-cache", "-o", out,
    )  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    before, after = figure(report, "accuracy", 0), figure(report, "accuracy")
    lost = before.value - after.value
    about = f"{after.value:.3f} %, {minutes:.1f} min"
    bench.row(f"{name}, accuracy lost", f"≤ {bars.lost} pt", f"{lost:.3f} pt", after.n, about, lost <= bars.lost)
    size(bench, name, report, bars)
    original = folder / f"{name}-original.onnx"
    cli("export", model, *arch, "-o", original)
    speed = figure(cli("bench", original, out / "model.onnx", "--threads", 1), "speedup")
    bench.row(
        f"{name}, speed at batch 1", f"≥ {bars.faster}×", f"{speed.value:.2f}×", speed.n, interval(speed),
        speed.value >= bars.faster,
    )  # fmt: skip
    bench.row(f"{name}, verdict", "PASS", report.verdict.value, 1, "", report.verdict.value == "PASS")


def exits(bench: Bench, folder: Path) -> None:
    """ResNet-56 against its export, and beside it 8 bit alone."""
    model, (seen, _, rest) = bench.data("models", "resnet56.th"), parts(bench, folder)
    arch = ("--arch", "examples/cifar_resnet.py:resnet56", "--input-shape", "1,3,32,32", "--normalize", NORMALIZE)
    data = ("--data", seen, "--eval-data", rest, "--no-bench", "--no-cache")
    start = time.perf_counter()
    report = cli("run", EXITS, model, *arch, *data, *(SHORT[EXITS] if bench.quick else ()), "-o", folder / EXITS)
    minutes = (time.perf_counter() - start) / 60
    lost, n = figure(report, "accuracy", 0).value - figure(report, "accuracy").value, figure(report, "accuracy").n
    bench.row(
        f"{EXITS} on ResNet-56, accuracy lost", "≤ 1 pt", f"{lost:.3f} pt", n, f"{minutes:.1f} min", lost <= 1
    )  # fmt: skip
    cli("run", "edge-int8", model, *arch, *data, "-o", folder / "alone")
    cli("export", model, *arch[:4], "-o", folder / "resnet56.onnx")
    found = cli(
        "compare", folder / "alone", folder / EXITS, folder / "resnet56.onnx", "--data", rest, "--normalize",
        NORMALIZE, "--threads", 1,
    )  # fmt: skip
    faster, whole = figure(found, "speedup", 1), figure(found, "speedup", 2)
    bench.row(
        f"{EXITS} on ResNet-56, mean speed over 8 bit alone", "> 1×, low above 1", f"{faster.value:.2f}×", faster.n,
        f"{interval(faster)}; {faster.value / whole.value:.2f}× over float32", (faster.low or 0) > 1,
    )  # fmt: skip
    bench.row(f"{EXITS} on ResNet-56, verdict", "PASS", report.verdict.value, 1, "", report.verdict.value == "PASS")


def size(bench: Bench, name: str, report: Report, bars: Bars) -> None:
    before, after = (entry.bytes for entry in report.models)
    ratio = before / after
    sizes = f"{before / 1e6:.2f} → {after / 1e6:.2f} MB"
    bench.row(f"{name}, smaller", f"≥ {bars.smaller}×", f"{ratio:.2f}×", 1, sizes, ratio >= bars.smaller)


def text(bench: Bench, folder: Path) -> None:
    name, model, known, out = "bert-small", minilm(), folder / "train.txt", folder / "bert-small"
    valid, pairs = bench.data("text", "wikitext2_valid.txt"), bench.data("text", "stsb-en-test.csv")
    with bench.data("text", "stsb-en-train.csv").open(encoding="utf-8", newline="") as file:
        sentences = [row[column] for row in csv.reader(file) for column in (0, 1)]
    known.write_text("\n".join([*plain_lines(valid), *sentences]), encoding="utf-8")
    length = SHORT[name] if bench.quick else ()
    start = time.perf_counter()
    report = cli(
        "run", name, model, "--data", known, "--eval-data", pairs, *length, "--no-bench", "--no-cache", "-o", out
    )  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    found = figure(report, "spearman")
    bench.row(
        f"{name}, STS-B test, Spearman ×100", f"≥ {TEXT.lost}", f"{found.value:.2f}", found.n,
        f"{interval(found)}; {minutes:.1f} min", found.value >= TEXT.lost,
    )  # fmt: skip
    size(bench, name, report, TEXT)
    original = folder / "original.onnx"
    cli("export", model, "-o", original)
    runtimes = [word for engine in ENGINES for word in ("--runtime", engine)]
    timed = cli("bench", original, out / "model.onnx", *runtimes, "--batch", 1, "--sequence", TOKENS)
    speeds = {m.model: m for m in timed.measurements if m.name == "speedup" and m.model.startswith("model.onnx")}
    best = max(speeds.values(), key=lambda m: m.value)
    bench.row(
        f"{name}, speed under the best engine, 1×{TOKENS} tokens", f"≥ {TEXT.faster}×", f"{best.value:.2f}×", best.n,
        f"{interval(best)}; {best.model}", best.value >= TEXT.faster,
    )  # fmt: skip


def other(bench: Bench, name: str, real: Real, folder: Path) -> None:
    """A recipe as it ships, held to its own limits."""
    start = time.perf_counter()
    report = cli("run", name, *real.words(bench, folder), "--no-bench", "--no-cache", "-o", folder / f"{name}-out")
    minutes = (time.perf_counter() - start) / 60
    before, after = (figure(report, real.metric, entry) for entry in (0, -1))
    sizes = " → ".join(f"{entry.bytes / 1e6:.2f}" for entry in (report.models[0], report.models[-1]))
    row = f"{name} on {real.what}"
    about = f"from {before.value:.3f}; {interval(after)}; {sizes} MB; {minutes:.1f} min"
    bench.row(f"{row}, {real.metric}", "", f"{after.value:.3f}", after.n, about)
    bench.row(f"{row}, verdict", "PASS", report.verdict.value, 1, "", report.verdict.value == "PASS")


def resnet20(bench: Bench, _folder: Path) -> Words:
    data = ("--data", bench.data("cifar10", "train.npz"), "--eval-data", bench.data("cifar10", "test.npz"))
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    return bench.data("models", "resnet20.th"), *arch, *data, "--normalize", NORMALIZE


def lines(bench: Bench, folder: Path) -> Words:
    known = folder / "lines.txt"
    known.write_text("\n".join(plain_lines(bench.data("text", "wikitext2_valid.txt"))), encoding="utf-8")
    return minilm(), "--data", known, "--eval-data", bench.data("text", "stsb-en-test.csv")


def pairs(bench: Bench, _folder: Path) -> Words:
    data = ("--data", bench.data("text", "stsb-en-train.csv"), "--eval-data", bench.data("text", "stsb-en-test.csv"))
    return minilm(), *data, *(("--set", "steps.1.train-samples=64") if bench.quick else ())


def stories(bench: Bench, _folder: Path) -> Words:
    data = ("--data", bench.data("text", "tinystories_calib.npz"))
    return bench.data("models", "stories260k"), *data, "--eval-data", bench.data("text", "tinystories_eval.npz")


def mixture(bench: Bench, folder: Path) -> Words:
    """The first mixture of bench_experts.py, and windows of letters."""
    import torch
    from bench_experts import STEPS, pieces, trained

    letters = np.frombuffer(bench.data("text", "tinyshakespeare.txt").read_bytes(), np.uint8).astype(np.int64)
    split = torch.from_numpy(letters).split(len(letters) * 9 // 10)
    trained(split[0], 0, 20 if bench.quick else STEPS).save_pretrained(folder / "mixture")
    for name, part, count, seed in (("seen", split[0], 2048, 8), ("held", split[1], 256, 7)):
        np.savez(folder / f"{name}.npz", input_ids=pieces(part, count, seed=seed).numpy())
    return folder / "mixture", "--data", folder / "seen.npz", "--eval-data", folder / "held.npz"


def digits(_bench: Bench, folder: Path) -> Words:
    demo = folder / "demo"
    subprocess.run(command("demo", "--quiet", "-o", demo), check=True, stdout=subprocess.DEVNULL)
    data = ("--data", demo / "train.npz", "--eval-data", demo / "test.npz")
    return demo / "digits.pt", "--arch", f"{demo / 'net.py'}:Net", *data


OTHERS = {
    "edge-4bit": Real("ResNet-20", "accuracy", resnet20),
    "palette-small": Real("ResNet-20", "accuracy", resnet20),
    "moe-half": Real("a small mixture", "perplexity", mixture),
    "cpu-fast": Real("MiniLM", "spearman", lines),
    "llm-4bit": Real("stories260k", "perplexity", stories),
    "tiny": Real("digits", "accuracy", digits),
    "qlora": Real("MiniLM", "spearman", pairs),
}


if __name__ == "__main__":
    main()
