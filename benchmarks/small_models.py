"""The files that the benchmarks of small devices run: ResNet-20 and MiniLM as they ship, float32 and quantized."""

from __future__ import annotations

from pathlib import Path

from bench_minilm import plain_lines
from cifar import NORMALIZE
from harness import Bench, cli, minilm

FEEDS = """
import numpy as np
def feeds(session):
    made = np.random.default_rng(0)
    found = {}
    for one in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 if axis == 0 else 128 for axis, size in enumerate(one.shape)]
        if "int" in one.type:
            found[one.name] = np.ones(shape, np.int64)
        else:
            found[one.name] = made.standard_normal(shape).astype(np.float32)
    return found
"""
"""What a process of its own feeds them: one image, or 128 tokens."""


def images(bench: Bench, folder: Path) -> dict[str, Path]:
    """ResNet-20's files by name."""
    model, train = bench.data("models", "resnet20.th"), bench.data("cifar10", "train.npz")
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    cli("export", model, *arch, "-o", folder / "resnet20.onnx")
    found = {"ResNet-20 float32": folder / "resnet20.onnx"}
    ways = {"int8": ("--method", "int8-static", "--samples", 128), "4 bit": ("--bits", 4, "--method", "rtn")}
    for name, options in ways.items():
        out = folder / f"resnet20-{options[1]}"
        cli("quantize", model, *arch, *options, "--data", train, "--normalize", NORMALIZE, "--no-bench", "-o", out)
        found[f"ResNet-20 {name}"] = out / "model.onnx"
    return found


def texts(bench: Bench, folder: Path) -> dict[str, Path]:
    """MiniLM's files by name."""
    lines = folder / "lines.txt"
    lines.write_text("\n".join(plain_lines(bench.data("text", "wikitext2_valid.txt"))), encoding="utf-8")
    cli("export", minilm(), "-o", folder / "minilm.onnx")
    found = {"MiniLM float32": folder / "minilm.onnx"}
    ways = {"int8": ("--method", "int8-dynamic"), "4 bit": ("--bits", 4, "--method", "rtn")}
    for name, options in ways.items():
        out = folder / f"minilm-{options[-1]}"
        cli("quantize", minilm(), *options, "--data", lines, "--no-bench", "-o", out)
        found[f"MiniLM {name}"] = out / "model.onnx"
    return found
