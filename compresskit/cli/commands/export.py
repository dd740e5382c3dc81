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
        "-o", "--output", help="File to write. (MODEL's name with .onnx)", rich_help_panel="Output", show_default=False
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
    interactive: shared.Interactive = False,
    quiet: shared.Quiet = False,
    force: shared.Force = False,
) -> None:
    """Write a model as ONNX, proven equal to the original.

    The file is written only if it computes what the model computes: on samples of --data where given, and on 32 seeded
    inputs and more, zeros and extremes among them, in several batch sizes. Batch and sequence axes may vary. Exit code
    1 when it doesn't.
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
    check_html(html, inputs, target, interactive=interactive)
    loaded = load_model(model, reading.load_options())
    source = opener(loaded, None, 128, paths=[data])(data)
    with progressing(quiet) as progress:
        report = export(loaded, target, data=source, seed=seed, force=force, command=command_line(), progress=progress)
    raise typer.Exit(finish(report, json=json, html=html, interactive=interactive, quiet=quiet, output=str(target)))
