"""``compresskit evaluate``."""

from __future__ import annotations

import typer

from compresskit.cli import options as shared


def command(
    model: shared.ModelArg,
    data: shared.MeasureData = None,
    normalize: shared.Normalize = None,
    sequence: shared.Sequence = 128,
    metric: shared.MetricName = None,
    arch: shared.Arch = None,
    arch_args: shared.ArchArgs = None,
    input_shape: shared.InputShape = None,
    allow_nonfinite: shared.AllowNonfinite = False,
    runtime: shared.RuntimeName = "onnxruntime",
    target: shared.Target = None,
    device: shared.Device = "cpu",
    threads: shared.Threads = 0,
    seed: shared.Seed = 0,
    json: shared.Json = None,
    html: shared.Html = None,
    markdown: shared.Markdown = False,
    quiet: shared.Quiet = False,
) -> None:
    """Measure the quality of a model on data.

    Accuracy for labelled samples, perplexity for a causal language model, Spearman correlation of embeddings for scored
    sentence pairs, or your own function. The model is measured as it ships: exported to ONNX, under a runtime. With
    --target x86-avx2 the 8-bit products of an int8 model saturate as on an x86 CPU without VNNI, bit by bit.
    """
    from compresskit.cli.comparing import compare_models
    from compresskit.errors import UsageError

    if data is None:
        raise UsageError("evaluate needs --data", "for example --data test.npz with arrays x and y")
    code = compare_models(
        [model], data=data, normalize=normalize, sequence=[sequence], metric=metric, arch=arch, arch_args=arch_args,
        input_shape=input_shape, allow_nonfinite=allow_nonfinite, runtimes=[runtime], target=target, device=device,
        threads=[threads], seed=seed, json=json, html=html, markdown=markdown, quiet=quiet, bench=False, judged=False,
    )  # fmt: skip
    raise typer.Exit(code)
