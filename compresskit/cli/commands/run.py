"""``compresskit run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compresskit.cli import options as shared

ModelArg = Annotated[
    Path | None, typer.Argument(metavar="[MODEL]", help="Overrides the value of the recipe.", show_default=False)
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not read or write the step cache.")]


def command(
    recipe: shared.RecipeArg,
    model: ModelArg = None,
    set_: shared.Sets = None,
    allow_code: shared.AllowCode = False,
    dry_run: shared.DryRun = False,
    cache: shared.CacheFolder = None,
    no_cache: NoCache = False,
    output: shared.Output = None,
    arch: shared.Arch = None,
    arch_args: shared.ArchArgs = None,
    input_shape: shared.InputShape = None,
    batch_axis: shared.BatchAxis = None,
    key: shared.Key = None,
    data: shared.Data = None,
    eval_data: shared.EvalData = None,
    normalize: shared.Normalize = None,
    metric: shared.MetricName = None,
    max_drop: shared.MaxDrop = None,
    max_size: shared.MaxSize = None,
    min_speedup: shared.MinSpeedup = None,
    no_bench: shared.NoBench = False,
    json: shared.Json = None,
    html: shared.Html = None,
    interactive: shared.Interactive = False,
    no_html: shared.NoHtml = False,
    markdown: shared.Markdown = False,
    quiet: shared.Quiet = False,
    force: shared.Force = False,
) -> None:
    """Run the steps of a recipe in order and judge the result.

    The recipe is checked before anything runs. Finished steps are cached: a run that was interrupted resumes when it is
    started again, and gives the same bytes. Options on the command line override the values of the recipe.
    """
    from compresskit.cli.inputs import parse_args, parse_axes, parse_shape
    from compresskit.cli.option_groups import Showing
    from compresskit.cli.recipes import Running, run_all, show_plan
    from compresskit.errors import UsageError
    from compresskit.recipe.plan import axes_document
    from compresskit.recipe.reading import read_recipe
    from compresskit.runner.cache import Cache

    if cache is not None and no_cache:
        raise UsageError("--cache and --no-cache exclude each other", "give one of them")
    shape = parse_shape(input_shape)
    given: dict[str, Any] = {
        "model": None if model is None else str(model),
        "arch": arch,
        "arch-args": parse_args(arch_args) or None,
        "input-shape": list(shape) if shape else None,
        "batch-axis": axes_document(parse_axes(batch_axis)),
        "key": key,
        "data": data,
        "eval-data": eval_data,
        "normalize": normalize,
        "metric": metric,
        "checks.max-drop": max_drop,
        "checks.max-size": max_size,
        "checks.min-speedup": min_speedup,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    points = read_recipe(recipe, sets=set_ or (), overrides=overrides, allow_code=allow_code, complete=not dry_run)
    kept = None if no_cache else Cache(cache) if cache is not None else Cache.default()
    if dry_run:
        show_plan(points)
        return
    running = Running(kept, not no_bench, Showing(json, html, interactive, markdown, quiet), force, pages=not no_html)
    raise typer.Exit(run_all(points, output, running))
