"""all-MiniLM-L6-v2 at 8×128 tokens under every engine: 8 and 4 bit against onnxruntime's float32.

Both files are what ``quantize`` writes by default with calibration data (WikiText-2's validation split): ``--bits 8``
comes to smoothquant, ``--bits 4`` to gptq with fragile layers wider. Likeness is measured as in ``bench_minilm.py``.
"""

from __future__ import annotations

from bench_minilm import LINES, TOKENS, plain_lines
from harness import Bench, cli, figure, interval, megabytes, minilm, workplace

ENGINES = ("onnxruntime", "openvino", "openvino-bf16")
LEAST = {8: 3.0, 4: 2.4}
LEAST_COSINE = 0.99


def main() -> None:
    bench = Bench("MiniLM engines", __doc__ or "", data=True)
    model, valid = minilm(), bench.data("text", "wikitext2_valid.txt")
    with workplace() as folder:
        lines = folder / "lines.txt"
        chosen = plain_lines(bench.data("text", "wikitext2_test.txt"))[: 20 if bench.quick else LINES]
        lines.write_text("\n".join(chosen), encoding="utf-8")
        cli("export", model, "-o", folder / "fp32.onnx")
        for bits, least in LEAST.items():
            out = folder / f"int{bits}"
            cli("quantize", model, "--bits", bits, "--data", valid, "--no-bench", "-o", out)
            cosine = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
            size = f"{interval(cosine, 4)}; {megabytes(out / 'model.onnx'):.2f} MB"
            bench.row(
                f"{bits} bit, mean cosine of pooled embeddings", f"≥ {LEAST_COSINE}", f"{cosine.value:.4f}", cosine.n,
                size, cosine.value >= LEAST_COSINE,
            )  # fmt: skip
            runtimes = [word for engine in ENGINES for word in ("--runtime", engine)]
            report = cli(
                "bench", folder / "fp32.onnx", out, *runtimes, "--batch", 8, "--sequence", TOKENS,
                "--processes", 2 if bench.quick else 5,
            )  # fmt: skip
            found = {m.model: m for m in report.measurements if m.name == "speedup"}
            for name, speedup in found.items():
                case = name if f"int{bits}" in name else f"{name} (beside {bits} bit)"
                bench.row(f"{case}, 8×{TOKENS} tokens", "", f"{speedup.value:.2f}×", speedup.n, interval(speedup))
            best = max((m for name, m in found.items() if f"int{bits}" in name), key=lambda m: m.value)
            bench.row(
                f"{bits} bit under the best engine, 8×{TOKENS} tokens, over onnxruntime float32", f"≥ {least}×",
                f"{best.value:.2f}×", best.n, f"{interval(best)}; {best.model}", best.value >= least,
            )  # fmt: skip
    bench.end()


if __name__ == "__main__":
    main()
