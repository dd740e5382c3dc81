"""ResNet-20 and -56 on CIFAR-10, and MiniLM, with cheaper layers in the place of some of theirs, without training.

The figures come from ``compresskit substitute --method collapse``: accuracy of the shipped ONNX file on the test
images, and its speed under onnxruntime against the original's, one thread, at batch 1. Layers are fitted on training
images, without labels. Bars lie above what a trial gave in which nothing behind a replaced block was fitted again:
89.5 % and 87.1 % with two and three 3×3, 81.8 % and 76.4 % with 1×1; ResNet-56 with six and nine 1×1 90.2 % and
85.7 %, with twelve 80.1 %.

MiniLM is fitted on the first lines of WikiText-2's validation split; likeness is the mean cosine between pooled
embeddings of the original and of the result on 200 lines of the test split. Without two layers it is below .91. A
plain depthwise ResNet-20 with refitted 1×1 had .717 on a JPEG copy of the set, at multiplier 2.

Tokens are merged, dropped and fused without training: in the shape of DeiT-Tiny with random weights for the speed
alone, and in a vision transformer that ``small_vit.py`` trains first (25 minutes on one core; ``--keep`` names the
folder where it stays). One head of attention over 2,048 tokens is all of its model: a trial gathered a window by hand,
4.97 times as fast as dense attention.

Units that never or always switch on are looked for in networks of one hidden layer for scikit-learn's digits, trained
here with Adam at a learning rate of .01, which leaves many of them: on 1,400 images. The output is compared on the 397
others, both as ONNX files: by how much it changes, and in how many images by more than rounding (1e-5), which the bound
of the report is held against.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_minilm import LINES, TOKENS, plain_lines
from cifar import NORMALIZE, accuracy_row, share
from harness import Bench, cli, figure, interval, minilm, workplace
from small_vit import trained
from variants import HEAD, OneHead
from variants import TOKENS as LONG


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
DEPTHWISE, MINILM = "ResNet-20, depthwise, multiplier 2", "MiniLM, 2 of 6 layers as Linear layers"
LEAST_COSINE, LEAST_SPEEDUP = 0.95, 1.35
DEIT, VIT = "DeiT-Tiny shape, 197 tokens", "ViT on CIFAR-10, 122 tokens"
DEIT_SPEEDUPS = {8: None, 13: 1.45, 16: None}
TEXTS: dict[str, tuple[int, tuple[str | float, ...]]] = {
    "MiniLM, an eighth of the tokens merged in each layer": (128, ("--method", "tokens", "--share", 0.125)),
    "MiniLM, attention in a window of 8 and to the first token": (
        512,
        ("--method", "attention", "--window", 8, "--everywhere", 1),
    ),
}
BOTTLENECKS: tuple[tuple[str | float, ...], ...] = (("--count", 6), ("--budget", 0.7))
DIGITS, SEEDS = "digits, 64-256-10 units", 3
LEAST_UNITS, MOST_CHANGE = 60, 1e-5
MARGIN = 0.05
"""Chosen on seeds 10 to 17: the least of 0, .05, .1, .2 … with which no output changed by more than the bar."""
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
"""
VIT_TOKENS, VIT_SPEEDUP, VIT_LOSS = (10, 16), 1.3, 1.0
VITS = {
    f"{VIT}, {tokens} {done} a block": (reduction, tokens)
    for (reduction, done), tokens in product((("merge", "merged"), ("prune", "dropped"), ("fuse", "fused")), VIT_TOKENS)
}
ONE_HEAD = f"one head of attention, {LONG} tokens"
PATTERNS: dict[str, tuple[tuple[str | float, ...], float | None]] = {
    "a window of 64 and 16 tokens everywhere": (("--window", 64, "--everywhere", 16), 4.97),
    "64 sums (Linformer)": (("--pattern", "linformer", "--rank", 64), None),
    "64 random features (Performer)": (("--pattern", "performer", "--features", 64), None),
    "elu + 1 (linear)": (("--pattern", "linear"), None),
}


def main() -> None:
    bench = Bench("substitute", __doc__ or "", data=True, keep=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with workplace() as folder:
        for case in CASES:
            if bench.wants(case.name) and bench.known(f"{case.name}, accuracy") is None:
                substituted(bench, case, folder / f"{case.depth}-{case.count}-{case.stand_in}")
        if bench.wants(DEPTHWISE):
            depthwise(bench, folder / "depthwise")
        for options in BOTTLENECKS:
            if bench.wants(name := f"ResNet-20, bottlenecks, {' '.join(map(str, options))}"):
                bottlenecks(bench, name, options, folder / f"bottleneck-{options[-1]}")
        if bench.wants(DIGITS):
            units(bench, folder)
        if bench.wants(MINILM):
            layers(bench, folder / "minilm")
        if bench.wants(DEIT):
            deit(bench, folder / "deit")
        if any(map(bench.wants, VITS)):
            with bench.kept() as kept:
                vit(bench, kept, folder / "vit")
        if bench.wants(ONE_HEAD):
            head(bench, folder)
        for name, (sequence, options) in TEXTS.items():
            if bench.wants(name):
                texts(bench, name, sequence, options, folder)
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
    speed_row(bench, case.name, original, out, case.speedup, "--batch", 1)


def depthwise(bench: Bench, out: Path) -> None:
    """All convolutions but the first as depthwise ones, two windows a channel."""
    parts(bench, DEPTHWISE, out, "--method", "depthwise", "--exclude", "conv1", "--guard", "size")


def bottlenecks(bench: Bench, name: str, options: tuple[str | float, ...], out: Path) -> None:
    """Some convolutions through half of their channels, each measured to be faster."""
    parts(bench, name, out, "--method", "bottleneck", *options)


def parts(bench: Bench, name: str, out: Path, *options: str | float) -> None:
    """ResNet-20 with cheaper layers in the place of some of its convolutions."""
    model, arch = bench.data("models", "resnet20.th"), ("--arch", "examples/cifar_resnet.py:resnet20")
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    start = time.perf_counter()
    report = cli(
        "substitute", model, *arch, "--input-shape", "1,3,32,32", *options, "--samples", 64 if bench.quick else 512,
        "--data", train, "--eval-data", test, "--normalize", NORMALIZE, "--no-bench", "-o", out,
    )  # fmt: skip
    accuracy_row(bench, name, None, report, (time.perf_counter() - start) / 60)
    original = out.parent / "resnet20.onnx"
    if not original.exists():
        cli("export", model, *arch, "--input-shape", "1,3,32,32", "-o", original)
    speed_row(bench, name, original, out, None, "--batch", 1)


def units(bench: Bench, folder: Path) -> None:
    """Units that never or always switch on, out of small networks."""
    (folder / "net.py").write_text(NET, encoding="utf-8")
    found = [digits(folder, seed, 2 if bench.quick else 60) for seed in range(1 if bench.quick else SEEDS)]
    gone, changes = [one["gone"] for one in found], [one["change"] for one in found]
    bench.row(
        f"{DIGITS}, removed or bypassed of 256", f"≥ {LEAST_UNITS}", f"{np.mean(gone):.0f}", len(found),
        f"{min(gone)} to {max(gone)}; proven: {sum(one['proven'] for one in found)}",
        bool(np.mean(gone) >= LEAST_UNITS),
    )  # fmt: skip
    bench.row(
        f"{DIGITS}, change of the output on test images, relative", f"≤ {MOST_CHANGE:g}", f"{max(changes):.2g}",
        397 * len(found), f"{min(changes):.2g} to {max(changes):.2g}", max(changes) <= MOST_CHANGE,
    )  # fmt: skip
    bench.row(
        f"{DIGITS}, test images that change by more than {MOST_CHANGE:g}", "below the bound",
        f"{100 * max(one['share'] for one in found):.2f} %", 397 * len(found),
        f"bound {100 * min(one['bound'] for one in found):.2f} % of {found[0]['held_out']} held out",
        all(one["share"] <= one["bound"] for one in found),
    )  # fmt: skip


def digits(folder: Path, seed: int, epochs: int) -> dict[str, Any]:
    """One network: units that are gone, and what the output on images that had no part loses by it."""
    import onnxruntime
    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    x, y = (loaded.data[order] / 16).astype(np.float32), loaded.target[order]
    for name, part in (("train", slice(0, 1400)), ("test", slice(1400, None))):
        np.savez(folder / f"digits-{name}.npz", x=x[part], y=y[part])
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(epochs):
        for rows in torch.randperm(1400).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    model, out = folder / f"digits-{seed}.pt", folder / f"digits-{seed}"
    torch.save(net.state_dict(), model)
    arch = ("--arch", f"{folder / 'net.py'}:net", "--input-shape", "1,64")
    cli("export", model, *arch, "-o", f"{out}.onnx")
    report = cli(
        "substitute", model, *arch, "--method", "fold", "--units", "--margin", MARGIN, "--data",
        folder / "digits-train.npz", "--eval-data", folder / "digits-test.npz", "--no-bench", "-o", out,
    )  # fmt: skip
    before, after = (
        onnxruntime.InferenceSession(str(path)).run(None, {"input": x[1400:]})[0].astype(np.float64)
        for path in (f"{out}.onnx", out / "model.onnx")
    )
    apart = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    firing = report.history[-1]["facts"]["firing"]
    return {
        "gone": firing["never"] + firing["always"], "proven": firing["proven"], "bound": firing["bound"],
        "held_out": firing["held_out"], "change": float(np.linalg.norm(after - before) / np.linalg.norm(before)),
        "share": float((apart > MOST_CHANGE).mean()),
    }  # fmt: skip


def layers(bench: Bench, out: Path) -> None:
    """Two of MiniLM's six layers as one Linear layer each."""
    model, valid, test = minilm(), bench.data("text", "wikitext2_valid.txt"), bench.data("text", "wikitext2_test.txt")
    train, lines = out.parent / "train.txt", out.parent / "lines.txt"
    train.write_text("\n".join(plain_lines(valid)), encoding="utf-8")
    lines.write_text("\n".join(plain_lines(test)[: 20 if bench.quick else LINES]), encoding="utf-8")
    cli(
        "substitute", model, "--count", 2, "--guard", "size", "--samples", 32 if bench.quick else 512, "--data", train,
        "--sequence", TOKENS, "--no-bench", "-o", out,
    )  # fmt: skip
    found = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
    bench.row(
        f"{MINILM}, mean cosine of pooled embeddings", f"≥ {LEAST_COSINE}", f"{found.value:.4f}", found.n,
        interval(found, 4), found.value >= LEAST_COSINE,
    )  # fmt: skip
    original = out.parent / "minilm.onnx"
    cli("export", model, "-o", original)
    speed_row(bench, MINILM, original, out, LEAST_SPEEDUP, "--sequence", TOKENS)


def deit(bench: Bench, folder: Path) -> None:
    """Tokens merged in each of twelve blocks of random weights, which cost as much as trained ones."""
    from transformers import ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
    # 14 × 14 patches of 224 × 224 pixels, and a class token
    ViTForImageClassification(ViTConfig(**shape)).save_pretrained(folder / "model")
    cli("export", folder / "model", "-o", folder / "original.onnx")
    for tokens, least in DEIT_SPEEDUPS.items():
        out = folder / f"merged-{tokens}"
        cli(
            "substitute", folder / "model", "--method", "tokens", "--tokens", tokens, "--guard", "size", "--no-bench",
            "-o", out,
        )  # fmt: skip
        speed_row(bench, f"{DEIT}, {tokens} merged a block", folder / "original.onnx", out, least, "--batch", 1)


def vit(bench: Bench, kept: Path, folder: Path) -> None:
    """Fewer tokens in each of six blocks of a trained model, without training."""
    train, test = bench.data("cifar10", "train.npz"), bench.data("cifar10", "test.npz")
    model = trained(train, bench.data("models", "resnet20.th"), kept)
    arch = ("--arch", "examples/cifar_vit.py:vit", "--input-shape", "1,3,32,32")
    original = folder.parent / "vit.onnx"
    cli("export", model, *arch, "-o", original)
    for name, (reduction, tokens) in VITS.items():
        if not bench.wants(name):
            continue
        out = folder.parent / f"vit-{reduction}-{tokens}"
        report = cli(
            "substitute", model, *arch, "--method", "tokens", "--tokens", tokens, "--reduction", reduction, "--guard",
            "size", "--eval-data", test, "--normalize", NORMALIZE, "--no-bench", "-o", out,
        )  # fmt: skip
        before, after = figure(report, "accuracy", 0), figure(report, "accuracy")
        about = f"{before.value:.2f} % before; {interval(after)}; {100 * share(report):.1f} % of the MACs"
        lost = before.value - after.value
        bench.row(f"{name}, accuracy lost", f"≤ {VIT_LOSS:g} pt", f"{lost:.2f} pt", after.n, about, lost <= VIT_LOSS)
        speed_row(bench, name, original, out, VIT_SPEEDUP, "--batch", 1)


def head(bench: Bench, folder: Path) -> None:
    """Attention alone, which is what grows with the square of the length."""
    torch.manual_seed(0)
    torch.save(OneHead().state_dict(), folder / "head.pt")
    arch = ("--arch", "benchmarks/variants.py:OneHead", "--input-shape", f"1,{LONG},{HEAD}")
    original = folder / "head.onnx"
    cli("export", folder / "head.pt", *arch, "-o", original)
    for name, (options, least) in PATTERNS.items():
        cli(
            "substitute", folder / "head.pt", *arch, "--method", "attention", *options, "--guard", "size", "--no-bench",
            "-o", folder / "head", "--force",
        )  # fmt: skip
        speed_row(bench, f"{ONE_HEAD}, {name}", original, folder / "head", least, "--batch", 1)


def texts(bench: Bench, name: str, sequence: int, options: tuple[str | float, ...], folder: Path) -> None:
    """MiniLM with merged tokens or cheaper attention, without training."""
    model, out, lines = minilm(), folder / "texts", folder / "lines.txt"
    test = bench.data("text", "wikitext2_test.txt")
    lines.write_text("\n".join(plain_lines(test)[: 20 if bench.quick else LINES]), encoding="utf-8")
    cli("substitute", model, *options, "--guard", "size", "--no-bench", "-o", out, "--force")
    found = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
    bench.row(f"{name}, mean cosine of pooled embeddings", "", f"{found.value:.4f}", found.n, interval(found, 4))
    original = folder / "minilm.onnx"
    if not original.exists():
        cli("export", model, "-o", original)
    speed_row(bench, f"{name}, {sequence} tokens", original, out, None, "--sequence", sequence)


def speed_row(bench: Bench, name: str, original: Path, out: Path, least: float | None, *options: str | float) -> None:
    found = figure(cli("bench", original, out / "model.onnx", *options, "--threads", 1), "speedup")
    bar, passed = (f"≥ {least}×", found.value >= least) if least is not None else ("", None)
    bench.row(f"{name}, speed", bar, f"{found.value:.2f}×", found.n, interval(found), passed)


if __name__ == "__main__":
    main()
