"""``compresskit compare``."""

from __future__ import annotations

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Bounds, Engine, Evaluating, Reading, Showing, grouped


@grouped
def command(
    models: shared.ModelArgs,
    evaluating: Evaluating,
    bounds: Bounds,
    reading: Reading,
    no_bench: shared.NoBench = False,
    batch: shared.Batch = 1,
    *,
    engine: Engine,
    showing: Showing,
) -> None:
    """Compare models with the first one: quality, size, speed, and a verdict.

    Exit code 1: a limit was missed. Without --data the outputs are compared on random inputs, and the verdict is
    UNVERIFIED.
    """
    from compresskit.benchmark.sweep import points
    from compresskit.cli.comparing import compare_models
    from compresskit.errors import UsageError
    from compresskit.runner.compare import Comparison
    from compresskit.runner.timing import Timing

    if len(models) < 2:
        raise UsageError("compare needs two models or more, the baseline first", "for one model: compresskit evaluate")
    timing = Timing(points([batch], [engine.threads], [evaluating.sequence]))
    code = compare_models(
        models, engine.measuring(evaluating, bounds.limits(), bench=not no_bench),
        Comparison(judged=True, runtimes=[engine.runtime], timing=timing),
        reading=reading, showing=showing, evaluating=evaluating,
    )  # fmt: skip
    raise typer.Exit(code)
