"""``compresskit compare``."""

from __future__ import annotations

import typer

from compresskit.cli import options as shared


def command(
    models: shared.ModelArgs,
    data: shared.MeasureData = None,
    normalize: shared.Normalize = None,
    sequence: shared.Sequence = 128,
    metric: shared.MetricName = None,
    max_drop: shared.MaxDrop = None,
    max_size: shared.MaxSize = None,
    min_speedup: shared.MinSpeedup = None,
    arch: shared.Arch = None,
    arch_args: shared.ArchArgs = None,
    input_shape: shared.InputShape = None,
    allow_nonfinite: shared.AllowNonfinite = False,
    no_bench: shared.NoBench = False,
    batch: shared.Batch = 1,
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
    """Hold models against the first one: quality, size and speed, as a verdict.

    Exit code 1 when a limit is missed. Without --data the outputs are compared on made-up inputs, and the verdict stays
    UNVERIFIED.
    """
    from compresskit.cli.comparing import compare_models
    from compresskit.errors import UsageError

    if len(models) < 2:
        raise UsageError("compare needs two models or more, the baseline first", "for one model: compresskit evaluate")
    code = compare_models(
        models, data=data, normalize=normalize, sequence=[sequence], metric=metric, arch=arch, arch_args=arch_args,
        input_shape=input_shape, allow_nonfinite=allow_nonfinite, runtimes=[runtime], target=target, device=device,
        threads=[threads], seed=seed, json=json, html=html, markdown=markdown, quiet=quiet, bench=not no_bench,
        judged=True, batch=[batch], limits=(max_drop, max_size, min_speedup),
    )  # fmt: skip
    raise typer.Exit(code)
