"""stories260k: perplexity in float32, 8 and 4 bit on the TinyStories samples, as ONNX under onnxruntime."""

from __future__ import annotations

from harness import Bench, cli, figure, interval, workplace

KNOWN = 4.656
MOST_LOST = 1.0


def main() -> None:
    bench = Bench("stories260k", __doc__ or "", data=True)
    model, text = bench.data("models", "stories260k"), bench.data("text", "tinystories_eval.npz")
    before = figure(cli("evaluate", model, "--data", text), "perplexity")
    same = round(before.value, 3) == KNOWN
    bench.row("float32, perplexity", f"= {KNOWN}", f"{before.value:.3f}", before.n, interval(before, 3), same)
    with workplace() as folder:
        for bits in (8,) if bench.quick else (8, 4):
            report = cli("quantize", model, "--bits", bits, "--eval-data", text, "--no-bench", "-o", folder / f"{bits}")
            after = figure(report, "perplexity")
            worse = 100 * (after.value / before.value - 1)
            bench.row(f"{bits} bit, perplexity", "", f"{after.value:.3f}", after.n, interval(after, 3))
            bench.row(
                f"{bits} bit, perplexity above float32", f"≤ {MOST_LOST:g} %" if bits == 8 else "", f"{worse:.2f} %",
                after.n, "", worse <= MOST_LOST if bits == 8 else None,
            )  # fmt: skip
            sizes = " → ".join(f"{entry.bytes / 1e6:.2f}" for entry in report.models)
            bench.row(f"{bits} bit, size of model.onnx", "", f"{sizes} MB", 1)
    bench.end()


if __name__ == "__main__":
    main()
