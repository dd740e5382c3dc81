"""MiniLM pruned without training: zeros by method, narrower feed-forward parts, and blocks dropped.

Calibrated on the first lines of WikiText-2's validation split. Likeness is the mean cosine between the pooled
embeddings of the original and of the pruned model, both ONNX under onnxruntime, on 200 lines of the test split (those
of ``bench_minilm.py``). Options were chosen on other lines of the validation split. Plain implementations of the papers
gave .922, .870 and .729 for sparsegpt, wanda and magnitude at 50 %, and .864, .753 and .593 at 2:4.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench_minilm import LINES, TOKENS, plain_lines
from harness import Bench, cli, figure, interval, megabytes, minilm, workplace

CASES: dict[str, tuple[str, tuple[str | int | float, ...], float | None]] = {
    "50 % zeros, sparsegpt": ("sparsegpt", (), 0.92),
    "50 % zeros, wanda": ("wanda", (), None),
    "50 % zeros, magnitude": ("magnitude", (), None),
    "2:4 zeros, sparsegpt": ("sparsegpt", ("--pattern", "2:4"), 0.86),
    "2:4 zeros, wanda": ("wanda", ("--pattern", "2:4"), None),
    "2:4 zeros, magnitude": ("magnitude", ("--pattern", "2:4"), None),
    "a quarter of the neurons, width": ("width", (), None),
    "1 of 6 blocks dropped": ("depth", ("--drop", 1), None),
    "2 of 6 blocks dropped": ("depth", ("--drop", 2), None),
}
FREE = ("magnitude",)
ZEROS = ("sparsegpt", "wanda", "magnitude")


def main() -> None:
    bench = Bench("pruned text", __doc__ or "", data=True)
    model, valid = minilm(), bench.data("text", "wikitext2_valid.txt")
    test, pairs = bench.data("text", "wikitext2_test.txt"), bench.data("text", "stsb-en-test.csv")
    with workplace() as folder:
        lines = folder / "lines.txt"
        lines.write_text("\n".join(plain_lines(test)[: 20 if bench.quick else LINES]), encoding="utf-8")
        for case, (method, options, least) in CASES.items():
            out = folder / case.replace(" ", "-").replace(",", "").replace(":", "of").replace("%", "percent")
            data = () if method in FREE else ("--data", valid, *(("--samples", 16) if bench.quick else ()))
            start = time.perf_counter()
            cli("prune", model, "--method", method, *options, *data, "--no-bench", "-o", out)
            seconds = time.perf_counter() - start
            report = cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench")
            found = figure(report, "cosine")
            bench.row(
                f"MiniLM {case}, mean cosine of pooled embeddings", f"≥ {least}" if least else "",
                f"{found.value:.4f}", found.n, interval(found, 4), found.value >= least if least else None,
            )  # fmt: skip
            bench.row(f"MiniLM {case}, model.onnx", "", f"{megabytes(out / 'model.onnx'):.1f} MB", 1)
            bench.row(f"MiniLM {case}, whole command", "", f"{seconds:.0f} s", 1)
            if not bench.quick and (least or method not in ZEROS):
                spearman(bench, model, out, pairs, case)
    bench.end()


def spearman(bench: Bench, model: Path, bundle: Path, pairs: Path, case: str) -> None:
    found = figure(cli("compare", model, bundle, "--data", pairs, "--no-bench"), "spearman")
    bench.row(f"MiniLM {case}, STS-B test, Spearman ×100", "", f"{found.value:.2f}", found.n, interval(found))


if __name__ == "__main__":
    main()
