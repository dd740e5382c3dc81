"""What adapters bring back after rounding: MiniLM at 3 bits, stories260k at 4, codes left as they are.

The low-rank terms of ``quantize --repair`` are trained against the original (``--recover lora``). Everything is
measured on what ships: ONNX under onnxruntime. MiniLM learns from lines of WikiText-2's validation split and is
compared with the original on 200 lines of the test split (those of ``bench_minilm.py``); stories260k learns from
TinyStories' calibration samples and is measured on its evaluation ones. Its rank, epochs and batches were chosen on
held-out calibration samples.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench_minilm import LINES, TOKENS, plain_lines
from harness import Bench, cli, figure, interval, minilm, workplace

RANK, STORIES_RANK = 16, 32
RECOVERY = ("--method", "gptq", "--recover", "lora", "--no-bench")
LEAST_COSINE, MOST_PERPLEXITY = 0.975, 4.72
STORIES_EPOCHS = 40


def main() -> None:
    bench = Bench("recovery by adapters", __doc__ or "", data=True)
    with workplace() as folder:
        if bench.wants("stories260k"):
            perplexity(bench, folder)
        if bench.wants("MiniLM"):
            embeddings(bench, folder)
    bench.end()


def embeddings(bench: Bench, folder: Path) -> None:
    model, lines, known, out = minilm(), folder / "lines.txt", folder / "valid.txt", folder / "minilm"
    test, valid = bench.data("text", "wikitext2_test.txt"), bench.data("text", "wikitext2_valid.txt")
    lines.write_text("\n".join(plain_lines(test)[: 20 if bench.quick else LINES]), encoding="utf-8")
    known.write_text("\n".join(plain_lines(valid)), encoding="utf-8")
    length = ("--train-samples", 32, "--samples", 16) if bench.quick else ()
    start = time.perf_counter()
    cli(
        "quantize", model, "--bits", 3, *RECOVERY, "--repair", RANK, "--data", known, "--epochs", 1, "--batch-size", 16,
        "--precision", "bfloat16", *length, "-o", out,
    )  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    case = f"MiniLM 3 bit, rank {RANK}"
    found = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
    bench.row(
        f"{case}, mean cosine of pooled embeddings", f"≥ {LEAST_COSINE}", f"{found.value:.4f}", found.n,
        interval(found, 4), found.value >= LEAST_COSINE,
    )  # fmt: skip
    size = (out / "model.onnx").stat().st_size / 1e6
    bench.row(f"{case}, model.onnx", "", f"{size:.2f} MB", 1)
    bench.row(f"{case}, whole command", "", f"{minutes:.1f} min", 1)


def perplexity(bench: Bench, folder: Path) -> None:
    model, text = bench.data("models", "stories260k"), bench.data("text", "tinystories_eval.npz")
    known = bench.data("text", "tinystories_calib.npz")
    report = cli(
        "quantize", model, "--bits", 4, *RECOVERY, "--repair", STORIES_RANK, "--data", known,
        "--epochs", 1 if bench.quick else STORIES_EPOCHS, "--batch-size", 8, "--eval-data", text,
        "-o", folder / "stories",
    )  # fmt: skip
    found = figure(report, "perplexity")
    bench.row(
        f"stories260k 4 bit, rank {STORIES_RANK}, perplexity", f"≤ {MOST_PERPLEXITY}", f"{found.value:.3f}", found.n,
        interval(found, 3), found.value <= MOST_PERPLEXITY,
    )  # fmt: skip
    sizes = " → ".join(f"{entry.bytes / 1e6:.2f}" for entry in report.models)
    bench.row(f"stories260k 4 bit, rank {STORIES_RANK}, size of model.onnx", "", f"{sizes} MB", 1)


if __name__ == "__main__":
    main()
