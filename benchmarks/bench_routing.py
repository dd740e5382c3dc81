"""Routing: ResNet-56 with early exits on real images; MiniLM with routed adapters against merged ones.

The figures come from ``compresskit route --method exits`` and ``compresskit compare --data``. The heads, two
convolutions and a Linear layer each, see training images and learn from the last exit, without labels; the body stays
as it is. The network was trained on these images and is sure of all of them, so the thresholds are calibrated on 3,000
test images, and all figures are of the other 6,886. Latency is under onnxruntime with one thread against the original's
export, both on the same images in turns; the speed-up is of means.

The adapters, LoRA of rank 8, learn two tasks: STS-B (scores of likeness), and topics (pairs of passages of WikiText-2,
score 5 where both are from one article, else 0). ``lora combine`` of both with weights .5 and 1, merged, stands against
``lora route`` without data (Arrow), with 400 labelled sentences (gate), and with a gate that gives inputs of STS-B its
adapter and those of topics both (mix; chosen on other pairs of the training parts). Spearman ×100 on STS-B's test part
and on pairs of the test part's articles. ``--keep`` keeps the trained adapters.
"""

from __future__ import annotations

import csv
import os
import subprocess
import time
from pathlib import Path

import numpy as np
from cifar import NORMALIZE
from harness import Bench, cli, command, figure, gate, interval, minilm

from compresskit.report import Report

EXITS = "ResNet-56, early exits"
ADAPTERS = "MiniLM, two adapters"
TRAINED, CALIBRATED = 12_000, 3_000
BATCHES = (1, 8)


def main() -> None:
    bench = Bench("routing", __doc__ or "", data=True, keep=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with bench.kept() as folder:
        if bench.wants(EXITS):
            exits(bench, folder)
        if bench.wants(ADAPTERS):
            adapters(bench, folder)
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


def adapters(bench: Bench, folder: Path) -> None:
    """Both adapters, merged and routed, in one table for each task."""
    model, pairs = minilm(), 100 if bench.quick else 1500
    rng = np.random.default_rng(0)
    sts = list(csv.reader(bench.data("text", "stsb-en-train.csv").read_text(encoding="utf-8").splitlines()))
    sts = [sts[i] for i in rng.permutation(len(sts))[:pairs]]
    topics = topic_pairs(bench.data("text", "wikitext2_valid.txt"), pairs, 0)
    tests = {"STS-B": bench.data("text", "stsb-en-test.csv"), "topics": folder / "topics.csv"}
    write(tests["topics"], topic_pairs(bench.data("text", "wikitext2_test.txt"), 50 if bench.quick else 800, 1))
    write(folder / "gate.csv", [[row[0], str(k)] for k, rows in enumerate((sts, topics)) for row in rows[:200]])
    start = time.perf_counter()
    for name, rows in (("sts", sts), ("topic", topics)):
        write(folder / f"{name}.csv", rows)
        if (folder / name).is_dir():
            continue
        cli(
            "lora", model, "--epochs", 1, "--lr", 5e-4, "--batch-size", 32, "--sequence", 64, "--data",
            folder / f"{name}.csv", "--no-bench", "--no-export", "-o", folder / name,
        )  # fmt: skip
    for name, weight in (("merged .5", 0.5), ("merged 1", 1.0)):
        both = folder / f"both {weight}"
        told = command(
            "lora",
            "combine",
            folder / "sts",
            folder / "topic",
            "--weights",
            weight,
            weight,
            "-o",
            both,
            "-q",
            "--force",
        )
        subprocess.run(told, check=True)
        cli("lora", "merge", model, both, "--no-bench", "-o", folder / name, "--force")
    gated = ("--data", folder / "gate.csv")
    mixed = (*gated, "--mix", "1,0", "--mix", "1,1")
    for name, options in (("Arrow", ()), ("gate", gated), ("mix", mixed)):
        cli(
            "lora", "route", model, folder / "sts", folder / "topic", *options, "--no-bench", "-o", folder / name,
            "--force",
        )  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    results = ("merged .5", "merged 1", "Arrow", "gate", "mix")
    for task, data in tests.items():
        report = cli(
            "compare", model, *(folder / name for name in results), "--data", data, "--sequence", 64, "--no-bench"
        )
        found = [figure(report, "spearman", place) for place in range(6)]
        told = ", ".join(f"{name} {one.value:.2f}" for name, one in zip(("base", *results), found, strict=True))
        for name, one in (("gate", found[4]), ("mix", found[5])):
            ahead = one.value - max(found[1].value, found[2].value)
            bench.row(
                f"{ADAPTERS}, {task}, {name} before the better merged", "≥ 0.5", f"{ahead:+.2f}", found[0].n,
                f"{told}; {minutes:.1f} min in all", ahead >= 0.5,
            )  # fmt: skip
    cost = figure(cli("bench", folder / "merged .5", folder / "gate", "--sequence", 64, "--threads", 1), "speedup")
    bench.row(f"{ADAPTERS}, speed of routed against merged", "", f"{cost.value:.2f}×", cost.n, interval(cost))


def topic_pairs(text: Path, count: int, seed: int) -> list[list[str]]:
    """Pairs of passages, half of them from one article: ``first, second, score``."""
    articles: list[list[str]] = []
    for line in text.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("= ") and not line.startswith("= ="):
            articles.append([])
        elif articles and len(words := line.split()) >= 30 and not line.startswith("="):
            articles[-1] += [" ".join(words[at : at + 25]) for at in range(0, len(words) - 24, 25)]
    articles = [one for one in articles if len(one) > 1]
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        one, other = rng.choice(len(articles), 2, replace=False)
        same = number % 2 == 0
        first, second = rng.choice(len(articles[one]), 2, replace=False)
        third = articles[other][int(rng.integers(len(articles[other])))]
        found.append([articles[one][first], articles[one][second] if same else third, "5" if same else "0"])
    return found


def write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


if __name__ == "__main__":
    main()
