"""Experts: a small mixture with half of its experts, and dense models whose feed-forward layers become experts.

Mixtures: each seed trains a Mixtral of two layers with eight experts, two a token, on the bytes of tinyshakespeare.
Half of the experts of each layer are left out as ``route --method experts`` does, chosen on 64 pieces of the training
text: by gate times norm (REAP: the mean over an expert's tokens; total: the sum), by the number of tokens, or at random
(mean of five draws). Nothing is trained afterwards. Loss is the mean cross entropy in nats on text that was not trained
on; a row is how much it grows.

Dense: ``route --method experts`` on an MLP (64 to 1,024 to 10) trained on 1,400 of scikit-learn's digits, three seeds,
half of the hidden units a sample; and on MiniLM, 16 experts of which a token goes through 8, three quarters of the
hidden units in all. Clusters of units are held against random experts with the same router and the same shared units,
nothing is trained afterwards. Distance is the squared relative error of the output (for classes the divergence) on
held-out samples; cosine that of pooled embeddings of the ONNX files on 200 lines of WikiText-2's test split. Speed is
that of the dense model's export under onnxruntime, one thread.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_minilm import LINES, TOKENS, plain_lines
from harness import Bench, cli, figure, interval, minilm, workplace
from torch import nn
from torch.nn import functional as F

from compresskit.report import Report

SEEDS, DRAWS = 3, 5
STEPS, BATCH, LENGTH = 600, 16, 64
EXPERTS = 8
MIXTURES, DIGITS, MINILM = "4 of 8 experts", "digits, dense MLP", "MiniLM, dense"
NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 10))
"""


def main() -> None:
    bench = Bench("experts", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    if bench.wants(MIXTURES):
        mixtures(bench)
    with workplace() as folder:
        if bench.wants(DIGITS):
            digits(bench, folder)
        if bench.wants(MINILM):
            embeddings(bench, folder)
    bench.end()


def mixtures(bench: Bench) -> None:
    """Half of the experts, chosen in each way."""
    letters = np.frombuffer(bench.data("text", "tinyshakespeare.txt").read_bytes(), np.uint8).astype(np.int64)
    rows: list[dict[str, float]] = []
    for seed in range(1 if bench.quick else SEEDS):
        rows.append(halved(letters, seed, 20 if bench.quick else STEPS))
        print("  seed", seed, {name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    for name in ("reap", "total", "frequency", "random", "merged"):
        found = [row[name] for row in rows]
        held = name in ("reap", "total")
        bar = "less than frequency and random in each" if held else ""
        passed = all(row[name] < min(row["frequency"], row["random"]) for row in rows) if held else None
        spread = f"{min(found):.4f} to {max(found):.4f}; whole {np.mean([row['whole'] for row in rows]):.3f} nats"
        bench.row(f"{MIXTURES}, {name}, loss grows", bar, f"{np.mean(found):.4f} nats", len(rows), spread, passed)


def digits(bench: Bench, folder: Path) -> None:
    """An MLP of its own for each seed: distance, accuracy and speed."""
    from sklearn.datasets import load_digits

    from compresskit.train.loop import fit
    from compresskit.train.settings import Training

    known = load_digits()
    order = np.random.default_rng(0).permutation(len(known.target))
    x, y = (known.data[order] / 8 - 1).astype(np.float32), known.target[order].astype(np.int64)
    np.savez(folder / "train.npz", x=x[:1400], y=y[:1400])
    np.savez(folder / "test.npz", x=x[1400:], y=y[1400:])
    (folder / "net.py").write_text(NET)
    arch = ("--arch", f"{folder / 'net.py'}:net", "--input-shape", "1,64")
    scores: dict[str, list[float]] = {"original": [], "clustered": [], "random": []}
    distances: list[dict[str, float]] = []
    for seed in range(1 if bench.quick else SEEDS):
        torch.manual_seed(seed)
        module, part = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 10)), (x[:1400], y[:1400])
        fit(
            module, list(map(torch.from_numpy, part)), lambda net, part: F.cross_entropy(net(part[0]), part[1]),
            training=Training(30, seed=seed),
        )  # fmt: skip
        torch.save(module.state_dict(), folder / "net.pt")
        for split in ("clustered", "random"):
            report = cli(
                "route", folder / "net.pt", *arch, "--method", "experts", "--split", split, "--seed", seed, "--data",
                folder / "train.npz", "--eval-data", folder / "test.npz", "--max-drop", "10pt", "--no-bench", "-o",
                folder / split, "--force",
            )  # fmt: skip
            scores[split].append(figure(report, "accuracy").value)
        scores["original"].append(figure(report, "accuracy", 0).value)
        distances.append(report.history[-1]["facts"]["distance"])
    told = ", ".join(f"{name} {np.mean(found):.2f} %" for name, found in scores.items())
    compared(bench, DIGITS, distances, told)
    cli("export", folder / "net.pt", *arch, "-o", folder / "net.onnx")
    speeds(bench, DIGITS, folder / "net.onnx", folder / "clustered", (1, 128))


def embeddings(bench: Bench, folder: Path) -> None:
    """MiniLM: distance, cosine and speed."""
    lines, held = folder / "lines.txt", folder / "test.txt"
    lines.write_text("\n".join(plain_lines(bench.data("text", "wikitext2_valid.txt"))[:256]), encoding="utf-8")
    test = plain_lines(bench.data("text", "wikitext2_test.txt"))[: 20 if bench.quick else LINES]
    held.write_text("\n".join(test), encoding="utf-8")
    report: Report | None = None
    for split in ("clustered", "random"):
        report = cli(
            "route", minilm(), "--method", "experts", "--split", split, "--keep", 0.75, "--shared", 0.5, "--experts",
            16, "--data", lines, "--sequence", TOKENS, "--no-bench", "-o", folder / split, "--force",
        )  # fmt: skip
    found = cli(
        "compare", minilm(), folder / "clustered", folder / "random", "--data", held, "--sequence", TOKENS, "--no-bench"
    )
    cosines = [figure(found, "cosine", place) for place in (1, 2)]
    told = f"cosine {cosines[0].value:.4f} ({interval(cosines[0], 4)}), random {cosines[1].value:.4f}"
    compared(bench, MINILM, [report.history[-1]["facts"]["distance"]] if report else [], told)
    cli("export", minilm(), "-o", folder / "minilm.onnx")
    speeds(bench, MINILM, folder / "minilm.onnx", folder / "clustered", (1, 8))


def compared(bench: Bench, name: str, distances: list[dict[str, float]], told: str) -> None:
    """Clusters against random experts, and against as many units that are always on."""
    mean = {kind: float(np.mean([one[kind] for one in distances])) for kind in ("clustered", "random", "always")}
    bench.row(
        f"{name}, distance with clustered experts", "< random in each", f"{mean['clustered']:.4g}", len(distances),
        f"random {mean['random']:.4g}, as many units always on {mean['always']:.4g}; {told}",
        all(one["clustered"] < one["random"] for one in distances),
    )  # fmt: skip


def speeds(bench: Bench, name: str, dense: Path, routed: Path, batches: tuple[int, ...]) -> None:
    """Speed-up over the dense model's export."""
    for batch in batches:
        report = cli("bench", dense, routed, "--batch", batch, "--sequence", TOKENS, "--threads", 1)
        found = figure(report, "speedup")
        times = [figure(report, "latency_p50", place).value for place in (0, 1)]
        bench.row(
            f"{name}, speed with gathered experts, batch {batch}", "", f"{found.value:.2f}×", found.n,
            f"{interval(found)}; {times[0]:.3g} to {times[1]:.3g} ms",
        )  # fmt: skip


def halved(letters: np.ndarray, seed: int, steps: int) -> dict[str, float]:
    """How much the loss grows by each way to choose half of the experts."""
    from compresskit.ops.route.mixtures import keep_experts, merging, router_of, used

    train, test = (
        torch.from_numpy(letters[: len(letters) * 9 // 10]),
        torch.from_numpy(letters[len(letters) * 9 // 10 :]),
    )
    module = trained(train, seed, steps)
    ends = pieces(test, 128, seed=7)
    whole = loss(module, ends)
    batches = [{"input_ids": part} for part in pieces(train, 64, seed=8).split(16)]
    found = used(module, batches, lambda net, batch: net(**batch), lambda what, done, total: None)

    def cut(by: Any, draw: int = 0, *, merged: bool = False) -> float:
        other = copy.deepcopy(module)
        for number, (name, use) in enumerate(found.items()):
            kept = sorted(use.scores(by, 100 * draw + number).argsort(descending=True)[: EXPERTS // 2].tolist())
            weights = merging(router_of(other, name), use, kept) if merged else None
            keep_experts(other, name, kept, weights)
        return loss(other, ends) - whole

    drawn = [cut("random", draw) for draw in range(DRAWS)]
    return {
        "whole": whole, "reap": cut("reap"), "total": cut("total"),
        "frequency": cut("frequency"), "random": float(np.mean(drawn)),
        "merged": cut("reap", merged=True),
    }  # fmt: skip


def trained(letters: torch.Tensor, seed: int, steps: int) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=EXPERTS, num_experts_per_tok=2, use_cache=False,
    )  # fmt: skip
    module = MixtralForCausalLM(config)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        ids = pieces(letters, BATCH, seed=1000 * seed + step)
        optimizer.zero_grad()
        error(module, ids).backward()
        optimizer.step()
        schedule.step()
    return module.eval()


def pieces(letters: torch.Tensor, count: int, *, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(letters) - LENGTH, (count,), generator=made)
    return torch.stack([letters[start : start + LENGTH] for start in starts])


def error(module: Any, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(module(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def loss(module: Any, ids: torch.Tensor) -> float:
    return float(torch.stack([error(module, part) for part in ids.split(32)]).mean())


if __name__ == "__main__":
    main()
