"""``compresskit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Bounds, Engine, Evaluating, Reading, Showing, grouped

Prompts = Annotated[
    int, typer.Option("--prompts", min=1, help="Prompts for --generate.", rich_help_panel="Data and verdict")
]


@grouped
def command(
    models: shared.ModelArgs,
    evaluating: Evaluating,
    bounds: Bounds,
    reading: Reading,
    no_bench: shared.NoBench = False,
    batch: shared.Batch = 1,
    generate: shared.Generation = None,
    prompts: Prompts = 20,
    *,
    engine: Engine,
    showing: Showing,
) -> None:
    """Compare models with the first one: quality, size, speed, and a verdict.

    Exit code 1: a limit was missed. Without --data the outputs are compared on random inputs, and the verdict is
    UNVERIFIED.

    --generate 32,64 lets language models continue prompts from --data with their likeliest tokens: the share that is
    equal to the first model's, and the first difference. Each MODEL runs in the engine of its form, as in bench
    --generate.
    """
    from compresskit.benchmark.sweep import points
    from compresskit.cli.comparing import compare_models
    from compresskit.errors import UsageError
    from compresskit.runner.compare import Comparison
    from compresskit.runner.timing import Timing

    if len(models) < 2:
        raise UsageError("compare needs two models or more, the baseline first", "for one model: compresskit evaluate")
    if generate is not None:
        raise typer.Exit(_continued(models, generate, prompts, evaluating.data, engine.threads, showing))
    timing = Timing(points([batch], [engine.threads], [evaluating.sequence]))
    code = compare_models(
        models, engine.measuring(evaluating, bounds.limits(), bench=not no_bench),
        Comparison(judged=True, runtimes=[engine.runtime], timing=timing),
        reading=reading, showing=showing, evaluating=evaluating,
    )  # fmt: skip
    raise typer.Exit(code)


def _continued(models: list[Path], sizes: str, prompts: int, data: str | None, threads: int, showing: Showing) -> int:
    """Compare what language models write."""
    from compresskit.cli.console import progressing
    from compresskit.cli.inputs import command_line, parse_generation
    from compresskit.errors import UsageError
    from compresskit.runner.continuations import compare_continuations

    if data is None:
        raise UsageError("--generate needs --data", "for example --data book.txt")
    prompt, new = parse_generation(sizes)
    showing.check((*models, data))
    with progressing(showing.quiet) as progress:
        report = compare_continuations(
            models, data, prompt, new, prompts=prompts, threads=threads, command=command_line(), progress=progress
        )
    return showing.finish(report)
