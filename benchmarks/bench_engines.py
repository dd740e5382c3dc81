"""all-MiniLM-L6-v2 at 8×128 tokens under every engine: 8 and 4 bit against onnxruntime's float32.

The baseline is the file that ``torch.onnx.export`` writes by itself, which is what figures of other tools are over; the
float32 file of ``compresskit export``, whose attention is tidied, is timed beside it.

All files are calibrated on WikiText-2's validation split. Two are what ``quantize`` writes by default: ``--bits 8``
comes to smoothquant, ``--bits 4`` to gptq with fragile layers wider. The third is of about the size of the second, but
without zero points and in groups of 64, for which OpenVINO has faster kernels. Likeness is measured as in
``bench_minilm.py``.
"""

from __future__ import annotations

import subprocess
import sys

from bench_minilm import LINES, TOKENS, plain_lines
from harness import Bench, cli, figure, interval, megabytes, minilm, workplace

PLAIN = """
import sys, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1]).eval()
names = ("input_ids", "attention_mask", "token_type_ids")
axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
example = {name: torch.ones(2, 16, dtype=torch.int64) for name in names}
shapes = {name: axes for name in names}
torch.onnx.export(model, (), sys.argv[2], kwargs=example, dynamic_shapes=shapes, dynamo=True, external_data=False)
"""
ENGINES = ("onnxruntime", "openvino", "openvino-bf16")
CASES = {
    "int8": ("8 bit", ("--bits", 8), 3.0),
    "int4": ("4 bit", ("--bits", 4), None),
    "int4-symmetric": (
        "4 bit symmetric, group 64",
        ("--bits", 4, "--symmetric", "--group-size", 64, "--target-bits", 4.6),
        2.4,
    ),
}
"""Of each file: what it is, its options, and the least speed-up under the best engine."""
LEAST_COSINE = 0.99


def main() -> None:
    bench = Bench("MiniLM engines", __doc__ or "", data=True)
    model, valid = minilm(), bench.data("text", "wikitext2_valid.txt")
    with workplace() as folder:
        lines = folder / "lines.txt"
        chosen = plain_lines(bench.data("text", "wikitext2_test.txt"))[: 20 if bench.quick else LINES]
        lines.write_text("\n".join(chosen), encoding="utf-8")
        plain, own = folder / "plain.onnx", folder / "fp32.onnx"
        subprocess.run([sys.executable, "-c", PLAIN, model, plain], check=True, capture_output=True)
        cli("export", model, "-o", own)
        for name, (what, options, least) in CASES.items():
            out = folder / name
            cli("quantize", model, *options, "--data", valid, "--no-bench", "-o", out)
            cosine = figure(cli("compare", model, out, "--data", lines, "--sequence", TOKENS, "--no-bench"), "cosine")
            size = f"{interval(cosine, 4)}; {megabytes(out / 'model.onnx'):.2f} MB"
            bench.row(
                f"{what}, mean cosine of pooled embeddings", f"≥ {LEAST_COSINE}", f"{cosine.value:.4f}", cosine.n,
                size, cosine.value >= LEAST_COSINE,
            )  # fmt: skip
            runtimes = [word for engine in ENGINES for word in ("--runtime", engine)]
            report = cli(
                "bench", plain, own, out, *runtimes, "--batch", 8, "--sequence", TOKENS,
                "--processes", 2 if bench.quick else 5,
            )  # fmt: skip
            found = {m.model: m for m in report.measurements if m.name == "speedup"}
            for model_name, speedup in found.items():
                case = model_name if model_name.startswith(name) else f"{model_name} (beside {what})"
                bench.row(f"{case}, 8×{TOKENS} tokens", "", f"{speedup.value:.2f}×", speedup.n, interval(speedup))
            best = max((m for n, m in found.items() if n.startswith(name)), key=lambda m: m.value)
            bench.row(
                f"{what} under the best engine, 8×{TOKENS} tokens, over onnxruntime float32",
                f"≥ {least}×" if least else "", f"{best.value:.2f}×", best.n, f"{interval(best)}; {best.model}",
                best.value >= least if least else None,
            )  # fmt: skip
    bench.end()


if __name__ == "__main__":
    main()
