"""``compresskit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Reading, grouped

Target = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="Output file. (name of MODEL with .onnx)", rich_help_panel="Output", show_default=False
    ),
]


@grouped
def command(
    model: shared.ModelArg,
    output: Target = None,
    *,
    reading: Reading,
    data: shared.MeasureData = None,
    seed: shared.Seed = 0,
    json: shared.Json = None,
    html: shared.Html = None,
    quiet: shared.Quiet = False,
    force: shared.Force = False,
) -> None:
    """Export a model to ONNX and verify it against the original.

    The file is written only if its outputs match the model's: on samples of --data if given, and on at least 32 seeded
    inputs with zeros, extremes and several batch sizes. Batch and sequence axes are dynamic. Exit code 1: the outputs
    differ.
    """
    from compresskit.cli.console import check_html, check_json, check_output, finish, progressing
    from compresskit.cli.inputs import command_line, load_model
    from compresskit.errors import UsageError
    from compresskit.runner.exporting import export
    from compresskit.runner.sources import opener

    target = output or Path(f"{model.resolve().stem}.onnx")
    inputs = (model, data, reading.arch)
    if target.suffix != ".onnx":
        raise UsageError(f"--output {target}: expected a file that ends in .onnx")
    check_output(target, inputs, force=force)
    check_json(json, inputs, target)
    check_html(html, inputs, target)
    loaded = load_model(model, reading.load_options())
    source = opener(loaded, None, 128, paths=[data])(data)
    with progressing(quiet) as progress:
        report = export(loaded, target, data=source, seed=seed, force=force, command=command_line(), progress=progress)
    raise typer.Exit(finish(report, json=json, html=html, quiet=quiet, output=str(target)))
