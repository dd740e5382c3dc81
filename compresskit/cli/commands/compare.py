"""``compresskit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Bounds, Engine, Evaluating, Reading, Showing, grouped

Prompts = Annotated[
    int, typer.Option("--prompts", min=1, help="Prompts for --generate.", rich_help_panel="Data and verdict")
]

Layers = Annotated[
    bool,
    typer.Option(
        "--layers",
        help="Compare two models layer by layer, and name the first layer where they part. Modules and .onnx files.",
        rich_help_panel="Data and verdict",
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples", min=1, help="Maximum number of samples for --layers.", rich_help_panel="Data and verdict"
    ),
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
    layers: Layers = False,
    samples: Samples = 32,
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

    --layers shows the relative error of each layer of two models, a module or an .onnx file each, and the first layer
    where it jumps. There is no verdict.
    """
    from compresskit.benchmark.sweep import points
    from compresskit.cli.comparing import compare_models
    from compresskit.errors import UsageError
    from compresskit.runner.compare import Comparison
    from compresskit.runner.timing import Timing

    if len(models) < 2:
        raise UsageError("compare needs two models or more, the baseline first", "for one model: compresskit evaluate")
    if layers:
        _layers(models, samples, evaluating, bounds, reading, engine, showing)
        return
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


def _layers(
    models: list[Path], samples: int, evaluating: Evaluating, bounds: Bounds, reading: Reading, engine: Engine,
    showing: Showing,
) -> None:  # fmt: skip
    """Show where two models part."""
    import json

    from compresskit.checkpoint.bundle import weights_of
    from compresskit.cli.console import progressing, write_json
    from compresskit.errors import UsageError
    from compresskit.runner.layerwise import compare_layers
    from compresskit.runner.loading import load_shipped
    from compresskit.runner.sources import opener

    if len(models) != 2:
        raise UsageError("--layers compares two models", "give two")
    if bounds != Bounds() or evaluating.metric is not None or showing.html is not None or showing.markdown:
        raise UsageError("--layers has no verdict and no report", "remove limits, --metric, --html and --markdown")
    showing.check((*models, evaluating.data, reading.arch))
    options = reading.load_options()
    one, two = (  # a bundle that has no weights is its ONNX file
        load_shipped(path, options, several=True, runtime="torch" if weights_of(path).is_file() else "onnxruntime")
        for path in models
    )

    def open_data(model: Any) -> Any:
        return opener(model, evaluating.normalize, evaluating.sequence, paths=[evaluating.data])(evaluating.data)

    with progressing(showing.quiet) as progress:
        found = compare_layers(
            one, two, open_data, samples=samples, threads=engine.threads, seed=engine.seed, progress=progress,
        )  # fmt: skip
    write_json(json.dumps(found, indent=2, ensure_ascii=False) + "\n", showing.json)
    if showing.json != "-" and not showing.quiet:
        from compresskit.render.layerwise_view import print_layers

        print_layers(found)
