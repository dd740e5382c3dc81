"""all-MiniLM-L6-v2: STS-B, size and likeness of 4 and 8 bit weights with the embeddings, and speed for information.

Likeness is the mean cosine between the masked-mean-pooled embeddings of the original and of the quantized model, both
ONNX under onnxruntime, on 200 lines of WikiText-2's test split: the first that hold at least 40 characters and aren't
headings (``= Title =``), cut at 128 tokens.
"""

from __future__ import annotations

from pathlib import Path

from harness import Bench, cli, figure, interval, megabytes, minilm, workplace

KNOWN = 82.03
LINES, LEAST_CHARACTERS, TOKENS = 200, 40, 128
BARS = {4: (13.5, 0.97), 8: (25.0, 0.999)}


def main() -> None:
    bench = Bench("MiniLM", __doc__ or "", data=True)
    model = minilm()
    pairs, text = bench.data("text", "stsb-en-test.csv"), bench.data("text", "wikitext2_test.txt")
    with workplace() as folder:
        lines = folder / "lines.txt"
        lines.write_text("\n".join(plain_lines(text)[: 20 if bench.quick else LINES]), encoding="utf-8")
        bundles = {bits: folder / f"int{bits}" for bits in BARS}
        for bits, bundle in bundles.items():
            cli("quantize", model, "--bits", bits, "--no-bench", "-o", bundle)
        likeness(bench, model, bundles, lines)
        if not bench.quick:
            spearman(bench, model, bundles, pairs)
        for batch in (1,) if bench.quick else (1, 8):
            speed(bench, model, bundles, batch)
    bench.end()


def plain_lines(path: Path) -> list[str]:
    """Lines of running text, in order."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if len(line) >= LEAST_CHARACTERS and not line.startswith("=")]


def likeness(bench: Bench, model: Path, bundles: dict[int, Path], lines: Path) -> None:
    report = cli("compare", model, *bundles.values(), "--data", lines, "--sequence", TOKENS, "--no-bench")
    for index, (bits, bundle) in enumerate(bundles.items(), 1):
        largest, least = BARS[bits]
        size = megabytes(bundle / "model.onnx")
        bench.row(
            f"{bits} bit, model.onnx with embeddings", f"≤ {largest} MB", f"{size:.2f} MB", 1, "", size <= largest
        )
        bench.row(f"{bits} bit, model.safetensors", "", f"{megabytes(bundle / 'model.safetensors'):.2f} MB", 1)
        cosine = figure(report, "cosine", index)
        bench.row(
            f"{bits} bit, mean cosine of pooled embeddings, WikiText-2 lines", f"≥ {least}", f"{cosine.value:.4f}",
            cosine.n, interval(cosine, 4), cosine.value >= least,
        )  # fmt: skip


def spearman(bench: Bench, model: Path, bundles: dict[int, Path], pairs: Path) -> None:
    report = cli("compare", model, *bundles.values(), "--data", pairs, "--no-bench")
    found = figure(report, "spearman", 0)
    same = round(found.value, 2) == KNOWN
    bench.row("float32, STS-B test, Spearman ×100", f"= {KNOWN}", f"{found.value:.2f}", found.n, interval(found), same)
    for index, bits in enumerate(bundles, 1):
        found = figure(report, "spearman", index)
        bench.row(f"{bits} bit, STS-B test, Spearman ×100", "", f"{found.value:.2f}", found.n, interval(found))


def speed(bench: Bench, model: Path, bundles: dict[int, Path], batch: int) -> None:
    processes = 2 if bench.quick else 15
    report = cli(
        "bench", model, *bundles.values(), "--batch", batch, "--sequence", TOKENS, "--processes", processes
    )  # fmt: skip
    for index, bits in enumerate(bundles, 1):
        found = figure(report, "speedup", index)
        bench.row(
            f"{bits} bit, speed-up over float32, {batch}×{TOKENS} tokens", "", f"{found.value:.2f}×", found.n,
            interval(found),
        )  # fmt: skip


if __name__ == "__main__":
    main()
