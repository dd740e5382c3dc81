"""MiniLM with two of its six layers dropped, distilled for at most five minutes on WikiText-2's validation split.

One command makes the student, trains it against the whole model and exports it; its wall time is the row's. Likeness is
the mean cosine between pooled embeddings of both ONNX files, on the 200 lines of the test split of ``bench_minilm.py``.
It learns from lines and from their single sentences: short texts take little time, and sentence pairs are made of them.
That, learning rate and epochs were chosen on 150 lines of the validation split, held out for it, and STS-B's dev split.
"""

from __future__ import annotations

import os
import re
import time

from bench_minilm import LINES, TOKENS, plain_lines
from harness import Bench, cli, figure, interval, megabytes, minilm, workplace

OPTIONS = ("--student-depth", 4, "--method", "layers", "--batch-size", 32, "--lr", 5e-4, "--precision", "bfloat16")
EPOCHS, LEAST_COSINE, LEAST_SPEARMAN, MOST_MINUTES = 2, 0.95, 80.5, 5.0
SHORTEST = 20
"""Characters of a sentence."""


def main() -> None:
    bench = Bench("MiniLM, 4 of 6 layers, distilled", __doc__ or "", data=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    model, valid = minilm(), bench.data("text", "wikitext2_valid.txt")
    test, pairs = bench.data("text", "wikitext2_test.txt"), bench.data("text", "stsb-en-test.csv")
    with workplace() as folder:
        train, lines, out = folder / "train.txt", folder / "lines.txt", folder / "out"
        texts = plain_lines(valid)[: 64 if bench.quick else None]
        train.write_text("\n".join([*texts, *sentences(texts)]), encoding="utf-8")
        lines.write_text("\n".join(plain_lines(test)[: 20 if bench.quick else LINES]), encoding="utf-8")
        start = time.perf_counter()
        cli(
            "distill", model, *OPTIONS, "--epochs", 1 if bench.quick else EPOCHS, "--data", train,
            "--sequence", TOKENS, "--no-bench", "-o", out,
        )  # fmt: skip
        minutes = (time.perf_counter() - start) / 60
        bench.row("whole command", f"≤ {MOST_MINUTES:g} min", f"{minutes:.1f} min", 1, "", minutes <= MOST_MINUTES)
        report = cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench")
        found = figure(report, "cosine")
        bench.row(
            "mean cosine of pooled embeddings", f"≥ {LEAST_COSINE}", f"{found.value:.4f}", found.n,
            interval(found, 4), found.value >= LEAST_COSINE,
        )  # fmt: skip
        bench.row("model.onnx", "", f"{megabytes(out / 'model.onnx'):.1f} MB", 1)
        if not bench.quick:
            found = figure(cli("compare", model, out, "--data", pairs, "--no-bench"), "spearman")
            bench.row(
                "STS-B test, Spearman ×100", f"≥ {LEAST_SPEARMAN}", f"{found.value:.2f}", found.n, interval(found),
                found.value >= LEAST_SPEARMAN,
            )  # fmt: skip
    bench.end()


def sentences(lines: list[str]) -> list[str]:
    """The sentences of lines, as far as full stops tell."""
    parts = (part.strip() for line in lines for part in re.split(r"(?<=[.!?]) +", line))
    return [part for part in parts if len(part) >= SHORTEST]


if __name__ == "__main__":
    main()
