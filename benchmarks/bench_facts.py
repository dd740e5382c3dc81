"""Known speed-ups of compressed models on small x86 machines, each measured again by one ``compresskit bench``.

The figures are those that this project was planned by; a row is met where the 95 % interval of the ratio covers the
figure, which is rounded to two digits. Where compresskit writes another file than the one that the figure was taken
from (another format, fused attention), the row can miss it on the fast side: the spread tells. Speed-ups are over the
float32 file under onnxruntime, or over float32 under torch where torch runs both. The sizes of the attention and of
the separable network behind the known figures aren't told: those of variants.py are ours. The ratios differ between
CPUs, and so do those on record: the table names the machine of each row.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from bench_mlp import WIDTH, make_mlp
from harness import ROOT, Bench, cli, interval, minilm, workplace
from variants import HEAD, TOKENS

from compresskit.report import Report

OPENVINO = ("openvino", "openvino-bf16") if find_spec("openvino") else ()
RESNET50 = """
import sys, numpy as np, torch
sys.path.insert(0, "benchmarks")
from resnet50 import settled
torch.save(settled().state_dict(), sys.argv[1])
np.savez(sys.argv[2], x=np.random.default_rng(1).standard_normal((int(sys.argv[3]), 3, 224, 224), dtype=np.float32))
"""
NARROW = """
import sys, torch
sys.path.insert(0, "examples")
from cifar_resnet import ResNet
torch.manual_seed(0)
torch.save(ResNet(3, width=int(sys.argv[2])).state_dict(), sys.argv[1])
"""
VARIANT = """
import sys, torch
sys.path.insert(0, "benchmarks")
import variants
torch.manual_seed(0)
torch.save(getattr(variants, sys.argv[2])().state_dict(), sys.argv[1])
"""


class Fact(NamedTuple):
    """A speed-up to be seen again: of which file, under what, at which batch; two figures where it is a range."""

    file: str
    known: tuple[float, ...]
    batch: int = 1
    runtime: str = "onnxruntime"


class Command(NamedTuple):
    """One ``compresskit bench``: its models and options, and what it must show."""

    name: str
    words: tuple[str | Path | float, ...]
    facts: tuple[Fact, ...]


def main() -> None:
    bench = Bench("known speed-ups", __doc__ or "", data=True)
    with workplace() as folder:
        for make in (resnet50, resnet20, widths, mlp, mlp_torch, sparse_and_thin, text, attention, separable):
            if not bench.wants(make.__name__):
                continue
            place = folder / make.__name__
            place.mkdir()
            for command in make(bench, place):
                report = cli("bench", *command.words, "--no-limits", *(("--processes", 2) if bench.quick else ()))
                for fact in command.facts:
                    if fact.runtime in ("onnxruntime", "torch", *OPENVINO):
                        show(bench, command.name, fact, report)
    bench.end()


def show(bench: Bench, name: str, fact: Fact, report: Report) -> None:
    """A row: does the interval cover the figure, which stands for all that rounds to it?"""
    found = [
        m for m in report.measurements
        if m.name == "speedup" and m.batch == fact.batch and m.runtime == fact.runtime
        and m.model.partition(" (")[0] == fact.file
    ]  # fmt: skip
    if len(found) != 1:
        sys.exit(f"{name}: {len(found)} speed-ups of {fact}")
    (one,) = found
    low, high = one.low or one.value, one.high or one.value
    least, most = (figure + side * 0.5 * step(figure) for figure, side in zip(ends(fact.known), (-1, 1), strict=True))
    covers = low <= most and high >= least
    known = " to ".join(f"{figure:.3g}×" for figure in fact.known)
    place = f"{fact.file}, {fact.runtime}, batch {fact.batch}"
    side = "" if covers else ", faster" if one.value > most else ", slower"
    bench.row(f"{name}: {place}", f"covers {known}", f"{one.value:.2f}×", one.n, interval(one) + side, covers)


def ends(known: tuple[float, ...]) -> tuple[float, float]:
    return min(known), max(known)


def step(figure: float) -> float:
    """What the last digit of a figure of two digits stands for."""
    return 10.0 ** (math.floor(math.log10(figure)) - 1)


def runtimes(*names: str) -> tuple[str, ...]:
    return tuple(word for name in ("onnxruntime", *names) for word in ("--runtime", name))


def resnet50(bench: Bench, folder: Path) -> Iterator[Command]:
    model, images = folder / "m.pt", folder / "x.npz"
    subprocess.run([sys.executable, "-c", RESNET50, model, images, "4" if bench.quick else "16"], cwd=ROOT, check=True)
    arch = ("--arch", "benchmarks/resnet50.py:resnet50", "--input-shape", "1,3,224,224")
    files = static(model, arch, images, folder)
    yield Command(
        "ResNet-50 shape", (*files, "--batch", "1,8", *runtimes(*OPENVINO)),
        (
            Fact("u8s8", (1.9,)), Fact("u8s8", (3.3,), 8), Fact("s8s8", (1.2,)), Fact("s8s8", (1.1,), 8),
            Fact("u8s8", (3.7,), 1, "openvino"), Fact("u8s8", (3.7,), 8, "openvino"),
            Fact("fp32.onnx", (2.0,), 1, "openvino-bf16"),
        ),
    )  # fmt: skip


def resnet20(bench: Bench, folder: Path) -> Iterator[Command]:
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    files = static(bench.data("models", "resnet20.th"), arch, bench.data("cifar10", "train.npz"), folder)
    yield Command("ResNet-20", files, (Fact("u8s8", (2.05,)), Fact("s8s8", (0.79,))))


def static(model: Path, arch: tuple[str, ...], data: Path, folder: Path) -> tuple[Path, Path, Path]:
    """float32, int8 as an x86 with VNNI wants it, and int8 with signed activations."""
    cli("export", model, *arch, "-o", folder / "fp32.onnx")
    for name, target in (("u8s8", "x86-vnni"), ("s8s8", "arm64")):
        cli(
            "quantize", model, *arch, "--method", "int8-static", "--target", target, "--data", data, "--samples", 16,
            "--no-bench", "-o", folder / name,
        )  # fmt: skip
    return folder / "fp32.onnx", folder / "u8s8", folder / "s8s8"


def widths(_bench: Bench, folder: Path) -> Iterator[Command]:
    files = []
    for width in (16, 11, 8):
        state = folder / f"{width}.pt"
        subprocess.run([sys.executable, "-c", NARROW, state, str(width)], cwd=ROOT, check=True)
        args = ("--arch-args", f'{{"blocks": 3, "width": {width}}}', "--input-shape", "1,3,32,32")
        cli("export", state, "--arch", "examples/cifar_resnet.py:ResNet", *args, "-o", folder / f"{width}.onnx")
        files.append(folder / f"{width}.onnx")
    yield Command("ResNet-20 of other widths", tuple(files), (Fact("11.onnx", (1.2,)), Fact("8.onnx", (2.3,))))


def mlp(bench: Bench, folder: Path) -> Iterator[Command]:
    state = folder / "m.pt"
    arch = make_mlp(state, 1 if bench.quick else 8)
    cli("export", state, *arch, "-o", folder / "fp32.onnx")
    four = ("--bits", 4, "--method", "rtn", "--group-size", 128, "--symmetric")
    for name, options in {"four": four, "dynamic": ("--method", "int8-dynamic")}.items():
        cli("quantize", state, *arch, *options, "--no-bench", "-o", folder / name)
    known = {"four": (3.0, 2.8, 2.5), "dynamic": (3.4, 3.1, 2.5)}
    facts = [Fact(name, (k,), b) for name, found in known.items() for k, b in zip(found, (1, 16, 128), strict=True)]
    facts += [Fact("four", (k,), b, "openvino") for k, b in ((4.5, 1), (3.3, 16), (2.5, 128))]
    files = (folder / "fp32.onnx", folder / "four", folder / "dynamic")
    yield Command("MLP", (*files, "--batch", "1,16,128", *runtimes(*OPENVINO[:1])), tuple(facts))


def mlp_torch(bench: Bench, folder: Path) -> Iterator[Command]:
    state = folder / "m.pt"
    arch = make_mlp(state, 1 if bench.quick else 8)
    for name in ("nf4", "bnb-int8"):
        cli("quantize", state, *arch, "--method", name, "--no-export", "--no-bench", "-o", folder / name)
    yield Command(
        "MLP under torch", (state, folder / "nf4", folder / "bnb-int8", *arch, "--runtime", "torch"),
        (Fact("nf4", (24.6 / 2.2,), 1, "torch"), Fact("bnb-int8", (24.6 / 4.2,), 1, "torch")),
    )  # fmt: skip


def sparse_and_thin(bench: Bench, folder: Path) -> Iterator[Command]:
    """Zeros that dense kernels multiply, and ranks at the break-even mn / (m + n) and at half of it."""
    state, rank = folder / "m.pt", 2048 * 5632 // (2048 + 5632) // 8 * 8
    arch = make_mlp(state, 1 if bench.quick else 2)
    cli("export", state, *arch, "-o", folder / "fp32.onnx")
    cli("prune", state, *arch, "--method", "magnitude", "--sparsity", 0.9, "--no-bench", "-o", folder / "zeros")
    for name, kept in (("even", rank), ("half", rank // 2)):
        cli("factorize", state, *arch, "--method", "svd", "--rank", kept, "--no-bench", "-o", folder / name)
    files = [folder / name for name in ("fp32.onnx", "zeros", "even", "half")]
    facts = (Fact("zeros", (1.0,)), Fact("even", (1.0,)), Fact("half", (1.6, 1.7)))
    yield Command(f"MLP of width {WIDTH}", tuple(files), facts)


def text(bench: Bench, folder: Path) -> Iterator[Command]:
    model, data = minilm(), bench.data("text", "wikitext2_valid.txt")
    cli("export", model, "-o", folder / "fp32.onnx")
    ways = {"dynamic": ("--method", "int8-dynamic"), "four": ("--bits", 4, "--method", "rtn"), "int8": ("--bits", 8)}
    for name, options in ways.items():
        cli("quantize", model, *options, "--data", data, "--no-bench", "-o", folder / name)
    facts = (
        Fact("dynamic", (1.8,), 8), Fact("four", (0.9,), 8), Fact("int8", (3.0,), 8, "openvino"),
        Fact("four", (2.4,), 8, "openvino"), Fact("fp32.onnx", (2.3,), 8, "openvino-bf16"),
    )  # fmt: skip
    files = tuple(folder / name for name in ("fp32.onnx", *ways))
    yield Command("MiniLM, 128 tokens", (*files, "--batch", "8", *runtimes(*OPENVINO)), facts)


def attention(_bench: Bench, folder: Path) -> Iterator[Command]:
    names = ("Dense", "Masked", "Gathered", "Linformer", "Performer")
    files = [variant(folder, name, f"1,{TOKENS},{3 * HEAD}") for name in names]
    known = (15.4 / 32.6, 15.4 / 3.1, 15.4 / 2.0, 15.4 / 2.6)
    facts = tuple(Fact(file.name, (k,)) for file, k in zip(files[1:], known, strict=True))
    yield Command(f"attention over {TOKENS} tokens", tuple(files), facts)


def separable(bench: Bench, folder: Path) -> Iterator[Command]:
    model, dense = bench.data("models", "resnet20.th"), folder / "fp32.onnx"
    cli("export", model, "--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32", "-o", dense)
    file = variant(folder, "separable", "1,3,32,32")
    yield Command("ResNet-20, depthwise-separable", (dense, file), (Fact(file.name, (3.6, 4.1)),))


def variant(folder: Path, name: str, shape: str) -> Path:
    """The export of one of variants.py."""
    state, file = folder / f"{name}.pt", folder / f"{name.lower()}.onnx"
    subprocess.run([sys.executable, "-c", VARIANT, state, name], cwd=ROOT, check=True)
    cli("export", state, "--arch", f"benchmarks/variants.py:{name}", "--input-shape", shape, "-o", file)
    return file


if __name__ == "__main__":
    main()
