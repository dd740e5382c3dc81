"""MiniLM with 80 and 60 % of the parameters of its Linear layers: low rank by method, without training and with some.

Calibrated on the first lines of WikiText-2's validation split. Likeness is the mean cosine between the pooled
embeddings of the original and of the factorized model, both ONNX under onnxruntime, on 200 lines of the test split
(those of ``bench_minilm.py``). Options were chosen on other lines of the validation split. Plain implementations gave
.611 and .445 for the truncated singular value decomposition at 80 and 60 %, .888 and .819 for the whitened one. The
trained row goes on against the original's outputs on lines of the validation split alone, forward passes in bfloat16.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench_minilm import LINES, TOKENS, plain_lines
from harness import Bench, cli, figure, interval, megabytes, minilm, workplace

METHODS = ("auto", "whitened", "svd")
BARS = {("auto", 0.8): 0.91, ("auto", 0.6): 0.84}
SAMPLES = 512
EPOCHS, LEAST_TRAINED, MOST_MINUTES = 3, 0.97, 5


def main() -> None:
    bench = Bench("factorized text", __doc__ or "", data=True)
    model, valid = minilm(), bench.data("text", "wikitext2_valid.txt")
    test, pairs = bench.data("text", "wikitext2_test.txt"), bench.data("text", "stsb-en-test.csv")
    with workplace() as folder:
        lines, known = folder / "lines.txt", folder / "valid.txt"
        lines.write_text("\n".join(plain_lines(test)[: 20 if bench.quick else LINES]), encoding="utf-8")
        known.write_text("\n".join(plain_lines(valid)), encoding="utf-8")
        untrained: dict[tuple[str, float], float] = {}
        for method in METHODS:
            for budget in (0.8, 0.6):
                if not bench.wants(f"{100 * budget:.0f} %, {method}"):
                    continue
                out = folder / f"{method}-{budget}"
                untrained[method, budget] = likeness(bench, model, known, lines, out, method, budget)
                if not bench.quick and method == "auto" and out.exists():
                    found = figure(cli("compare", model, out, "--data", pairs, "--no-bench"), "spearman")
                    name = f"MiniLM {100 * budget:.0f} %, {method}, STS-B test, Spearman ×100"
                    bench.row(name, "", f"{found.value:.2f}", found.n, interval(found))
        if ("auto", 0.8) in untrained and bench.wants("80 %, auto, trained"):
            trained(bench, model, known, lines, folder, untrained["auto", 0.8])
    bench.end()


def likeness(bench: Bench, model: Path, known: Path, lines: Path, out: Path, method: str, budget: float) -> float:
    """Rows of one case; gives the seconds that the command took."""
    case, least = f"MiniLM {100 * budget:.0f} %, {method}", BARS.get((method, budget))
    if (known := bench.known(f"{case}, whole command")) is not None:
        return float(known.removesuffix(" s"))
    samples = ("--data", known, "--samples", 16 if bench.quick else SAMPLES) if method != "svd" else ()
    start = time.perf_counter()
    cli("factorize", model, "--method", method, "--budget", budget, *samples, "--no-bench", "-o", out)
    seconds = time.perf_counter() - start
    found = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
    bench.row(
        f"{case}, mean cosine of pooled embeddings", f"≥ {least}" if least else "", f"{found.value:.4f}", found.n,
        interval(found, 4), found.value >= least if least else None,
    )  # fmt: skip
    bench.row(f"{case}, model.onnx", "", f"{megabytes(out / 'model.onnx'):.1f} MB", 1)
    bench.row(f"{case}, whole command", "", f"{seconds:.0f} s", 1)
    return seconds


def trained(bench: Bench, model: Path, known: Path, lines: Path, folder: Path, untrained: float) -> None:
    """The same at 80 % with some minutes of recovery, and its speed; ``untrained`` seconds are of the same without."""
    out = folder / "trained"
    samples = ("--samples", 16, "--train-samples", 32) if bench.quick else ("--samples", SAMPLES)
    start = time.perf_counter()
    cli(
        "factorize", model, "--budget", 0.8, "--data", known, *samples, "--epochs", 1 if bench.quick else EPOCHS,
        "--batch-size", 32, "--precision", "bfloat16", "--no-bench", "-o", out,
    )  # fmt: skip
    minutes = (time.perf_counter() - start - untrained) / 60
    bench.row(
        "MiniLM 80 %, minutes of training", f"≤ {MOST_MINUTES}", f"{minutes:.1f}", 1, "", minutes <= MOST_MINUTES
    )  # fmt: skip
    found = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
    bench.row(
        "MiniLM 80 %, trained, mean cosine of pooled embeddings", f"≥ {LEAST_TRAINED}", f"{found.value:.4f}", found.n,
        interval(found, 4), found.value >= LEAST_TRAINED,
    )  # fmt: skip
    speed = figure(cli("bench", model, out, "--batch", 1, "--sequence", TOKENS), "speedup")
    bench.row(
        f"MiniLM 80 %, speed at 1×{TOKENS} tokens", "> 1×", f"{speed.value:.2f}×", speed.n, interval(speed),
        speed.low is not None and speed.low > 1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
