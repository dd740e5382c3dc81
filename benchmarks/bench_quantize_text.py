"""Calibrated 4 and 3 bit weights on text: MiniLM's embeddings and stories260k's perplexity, by method.

Everything is measured on what ships: ONNX under onnxruntime, activations rounded to int8 in its packed products. MiniLM
is calibrated on the first lines of WikiText-2's validation split and compared with the original on 200 lines of its
test split (those of ``bench_minilm.py``); stories260k on TinyStories' calibration samples, then on its evaluation ones.
Options were chosen on held-out lines of the calibration splits.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench_minilm import LINES, TOKENS, plain_lines
from harness import Bench, cli, figure, interval, megabytes, minilm, workplace

REPAIR = 16
MINILM = {
    "4 bit auto": ("auto", 4, ()),
    f"3 bit gptq, repair {REPAIR}, embeddings 4 bit": (
        "gptq", 3, ("--repair", REPAIR, "--layer-bits", "embeddings.*=4/64"),
    ),
    "2 bit gptq, repair 32, group 16, embeddings 4 bit": (
        "gptq", 2, ("--repair", 32, "--group-size", 16, "--layer-bits", "embeddings.*=4/64"),
    ),
    "3 bit gptq, tuned, embeddings 4 bit": ("gptq", 3, ("--tune", 100, "--layer-bits", "embeddings.*=4/64")),
    "4 bit gptq": ("gptq", 4, ()),
    "4 bit awq": ("awq", 4, ()),
    "4 bit hqq": ("hqq", 4, ()),
    "4 bit rtn": ("rtn", 4, ()),
}  # fmt: skip
BARS = {
    "4 bit auto": (13.2, 0.990),
    f"3 bit gptq, repair {REPAIR}, embeddings 4 bit": (None, 0.965),
    "2 bit gptq, repair 32, group 16, embeddings 4 bit": (None, 0.93),
    "3 bit gptq, tuned, embeddings 4 bit": (None, 0.972),
}
LEAST_SPEARMAN, MOST_SECONDS, MOST_PERPLEXITY, SMALL = 81.9, 60, 4.80, 0.17
TUNED = ("--tune", 200)
TIED = ("--layer-bits", "model.embed_tokens=8/64")
WIDER = (*TIED, "--layer-bits", "*.v_proj=8/64", "--layer-bits", "*.o_proj=8/64")
STORIES = {
    "4 bit rtn": ("rtn", ()),
    "4 bit gptq": ("gptq", ()),
    "4 bit auto": ("auto", ()),
    "4 bit gptq, tuned": ("gptq", TUNED),
    "4 bit gptq, tuned, group 64": ("gptq", (*TUNED, "--group-size", 64)),
    "4 bit gptq, tied embedding 8 bit": ("gptq", TIED),
    "4 bit gptq, tied embedding, v and o 8 bit": ("gptq", WIDER),
}
CALIBRATED = ("gptq", "awq", "auto")


def main() -> None:
    bench = Bench("calibrated text", __doc__ or "", data=True)
    with workplace() as folder:
        perplexity(bench, folder)
        embeddings(bench, folder)
    bench.end()


def embeddings(bench: Bench, folder: Path) -> None:
    model, valid = minilm(), bench.data("text", "wikitext2_valid.txt")
    test, pairs = bench.data("text", "wikitext2_test.txt"), bench.data("text", "stsb-en-test.csv")
    lines = folder / "lines.txt"
    lines.write_text("\n".join(plain_lines(test)[: 20 if bench.quick else LINES]), encoding="utf-8")
    for case, (method, bits, more) in MINILM.items():
        if not bench.wants(f"MiniLM {case}"):
            continue
        out = folder / case.replace(" ", "-").replace(",", "")
        options = ["--data", valid, *(("--samples", 16) if bench.quick else ())] if method in CALIBRATED else []
        start = time.perf_counter()
        cli("quantize", model, "--method", method, "--bits", bits, *options, *more, "--no-bench", "-o", out)
        seconds = time.perf_counter() - start
        largest, least = BARS.get(case, (None, None))
        found = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
        bench.row(
            f"MiniLM {case}, mean cosine of pooled embeddings", f"≥ {least}" if least else "", f"{found.value:.4f}",
            found.n, interval(found, 4), found.value >= least if least else None,
        )  # fmt: skip
        size = megabytes(out / "model.onnx")
        bench.row(
            f"MiniLM {case}, model.onnx", f"≤ {largest} MB" if largest else "", f"{size:.2f} MB", 1, "",
            size <= largest if largest else None,
        )  # fmt: skip
        if largest is None:
            continue
        bench.row(
            f"MiniLM {case}, whole command", f"≤ {MOST_SECONDS} s", f"{seconds:.0f} s", 1, "", seconds <= MOST_SECONDS
        )
        if not bench.quick:
            found = figure(cli("compare", model, out, "--data", pairs, "--no-bench"), "spearman")
            bench.row(
                f"MiniLM {case}, STS-B test, Spearman ×100", f"≥ {LEAST_SPEARMAN}", f"{found.value:.2f}", found.n,
                interval(found), found.value >= LEAST_SPEARMAN,
            )  # fmt: skip


def perplexity(bench: Bench, folder: Path) -> None:
    model, text = bench.data("models", "stories260k"), bench.data("text", "tinystories_eval.npz")
    calibration = bench.data("text", "tinystories_calib.npz")
    for case, (method, more) in STORIES.items():
        if not bench.wants(f"stories260k {case}"):
            continue
        out = folder / f"stories-{case.replace(' ', '-').replace(',', '')}"
        options = ("--data", calibration) if method in CALIBRATED else ()
        report = cli(
            "quantize", model, "--method", method, "--bits", 4, *options, *more, "--eval-data", text, "--no-bench",
            "-o", out,
        )  # fmt: skip
        found = figure(report, "perplexity")
        last = more == WIDER or "group 64" in case
        bench.row(
            f"stories260k {case}, perplexity", f"≤ {MOST_PERPLEXITY}" if last else "", f"{found.value:.3f}", found.n,
            interval(found, 3), found.value <= MOST_PERPLEXITY if last else None,
        )  # fmt: skip
        sizes = " → ".join(f"{entry.bytes / 1e6:.2f}" for entry in report.models)
        size = report.models[-1].bytes / 1e6
        small = "group 64" in case
        bench.row(
            f"stories260k {case}, size of model.onnx", f"≤ {SMALL} MB" if small else "", f"{sizes} MB", 1, "",
            size <= SMALL if small else None,
        )  # fmt: skip


if __name__ == "__main__":
    main()
