"""What ``inspect --structure`` says beforehand, against what happens: R² of a block, and the loss of collapsing it.

R² is that of the document of ``compresskit inspect --structure``, by kind of layer, on training images or lines of
WikiText-2's validation split. The loss is measured: the fitted layer alone takes the place of the block, and the
model's output on other samples (test images, lines of the test split) is compared with the original's: mean KL
divergence of classes, relative squared error of embeddings. Spearman's ρ over the blocks says whether R² ranks them by
their loss; its interval is that of 2,000 resamplings of the blocks. The time is that of the whole command, one thread.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_minilm import LINES, TOKENS, plain_lines
from cifar import NORMALIZE
from harness import ROOT, Bench, command, minilm, workplace

LEAST = 0.8
SECONDS = {"ResNet-20": 60, "MiniLM": 180}
FIT, LOOK = 256, {20: 1024, 56: 384}
"""Samples that layers are fitted on, and images on which the loss is measured, by depth."""


def main() -> None:
    bench = Bench("structure", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with workplace() as folder:
        for depth in (20, 56):
            if bench.wants(f"ResNet-{depth}"):
                images(bench, depth, folder)
        if bench.wants("MiniLM"):
            texts(bench, folder)
    bench.end()


def images(bench: Bench, depth: int, folder: Path) -> None:
    model, train = bench.data("models", f"resnet{depth}.th"), bench.data("cifar10", "train.npz")
    arch = f"examples/cifar_resnet.py:resnet{depth}"
    found = inspected(
        bench, f"ResNet-{depth}", folder, model, "--arch", arch, "--data", train, "--normalize", NORMALIZE
    )
    given: dict[str, Any] = {"arch": str(ROOT / "examples" / "cifar_resnet.py") + f":resnet{depth}"}
    count = 64 if bench.quick else LOOK[depth]
    losses = collapsed(model, given, train, bench.data("cifar10", "test.npz"), count, scores=True)
    ranked(bench, f"ResNet-{depth}", found, losses, count)


def texts(bench: Bench, folder: Path) -> None:
    lines = {}
    for part in ("valid", "test"):
        lines[part] = folder / f"{part}.txt"
        text = plain_lines(bench.data("text", f"wikitext2_{part}.txt"))[: LINES if part == "test" else FIT]
        lines[part].write_text("\n".join(text), encoding="utf-8")
    found = inspected(bench, "MiniLM", folder, minilm(), "--data", lines["valid"], "--sequence", TOKENS)
    count = 16 if bench.quick else LINES
    losses = collapsed(minilm(), {}, lines["valid"], lines["test"], count, scores=False)
    ranked(bench, "MiniLM", found, losses, count)


def inspected(bench: Bench, name: str, folder: Path, *arguments: str | Path | float) -> dict[str, Any]:
    """The structure as the command tells it, and a row of its time."""
    out = folder / f"{name}.json"
    samples = 32 if bench.quick else FIT
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    words = command("inspect", *arguments, "--structure", "--samples", samples, "--json", out, "--quiet")
    if subprocess.run(words, cwd=ROOT, check=False).returncode:
        sys.exit(f"compresskit inspect failed on {name}")
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    most = SECONDS.get(name)
    bar, passed = (f"≤ {most} s", seconds <= most) if most else ("", None)
    bench.row(f"{name}, time of inspect --structure", bar, f"{seconds:.1f} s", samples, f"CPU {cpu:.1f} s", passed)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["structure"]
    return found


def collapsed(
    path: Path, given: dict[str, Any], fit: Path, look: Path, count: int, *, scores: bool
) -> dict[tuple[str, str], float]:
    """What the output loses by each fitted layer alone, by block and kind of layer."""
    from compresskit.ops.output_distance import OutputDistance
    from compresskit.ops.shrinking import CalibrationData, ShrinkSettings
    from compresskit.ops.structure.linearity import KINDS
    from compresskit.ops.substitute.candidates import Candidate, fitted, standing_in
    from compresskit.ops.substitute.sites import find
    from compresskit.runner.loading import load
    from compresskit.runner.prepare import with_inputs
    from compresskit.runner.sources import source_for
    from compresskit.stages.batches import batches_of, forward_of

    model = load(path, **given)
    normalize = NORMALIZE if scores else None
    used, other = (source_for(model, str(data), normalize, TOKENS) for data in (fit, look))
    model = with_inputs(model, used)
    module, inputs = model.module.eval(), model.card.inputs
    forward, batches = forward_of(module, inputs), batches_of(used, inputs, 16, FIT)
    data = CalibrationData({n: t[:2] for n, t in batches[-1].items()}, batches, forward, scores)
    sites = find(module, data, ShrinkSettings(), KINDS).sites
    stand_ins = fitted(module, sites, data, lambda what, done, total: None)
    away = OutputDistance(module, batches_of(other, inputs, 32, count), forward, scores=scores)
    where, losses = {site.name: site for site in sites}, {}
    for (name, kind), stand_in in stand_ins.items():
        with standing_in(module, [Candidate(where[name], kind, stand_in, 0.0)]):
            losses[name, kind] = away(module)
    return losses


def ranked(bench: Bench, name: str, found: dict[str, Any], losses: dict[tuple[str, str], float], count: int) -> None:
    """Whether R² ranks the blocks as their loss does, a row a kind of layer."""
    r2 = {(block["name"], kind): value for block in found["blocks"] for kind, value in block["by"].items()}
    for kind in dict.fromkeys(kind for _, kind in losses):
        keys = [key for key in losses if key[1] == kind and key in r2]
        x, y = np.array([r2[key] for key in keys]), np.array([-losses[key] for key in keys])
        rho, rng = round(spearman(x, y), 9), np.random.default_rng(0)
        drawn = [spearman(x[rows], y[rows]) for rows in rng.integers(0, len(keys), (2000, len(keys)))]
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        spread = f"95 %: {low:.2f} to {high:.2f}; loss on {count} samples"
        case = f"{name}, R² of a {kind} by block against the loss of collapsing it, Spearman"
        bench.row(case, f"≥ {LEAST}", f"{rho:.3f}", len(keys), spread, rho >= LEAST)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; NaN where a side is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else float("nan")


if __name__ == "__main__":
    main()
