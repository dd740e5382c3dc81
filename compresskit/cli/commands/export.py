"""``compresskit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    to: shared.To = [],  # noqa: B006 - typer copies it
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
    """Export a model to ONNX or another format, and verify it against the original.

    The file is written only if its outputs match the model's: on samples of --data if given, and on at least 32 seeded
    inputs with zeros, extremes and several batch sizes. Batch and sequence axes are dynamic. Exit code 1: the outputs
    differ.

    A language model goes to llama.cpp with --to gguf and to onnxruntime-genai with --to genai, an encoder-decoder to
    optimum and transformers.js with --to optimum, and any model of transformers back to it with --to
    compressed-tensors. --to gptq writes the checkpoint format of GPTQModel and vLLM. The codes stay those of MODEL;
    each file is read back, or run, and compared.
    """
    from compresskit.cli.console import check_html, check_json, check_output, finish, progressing
    from compresskit.cli.inputs import command_line, load_model
    from compresskit.errors import UsageError
    from compresskit.runner.exporting import export
    from compresskit.runner.sources import opener
    from compresskit.runner.targets import beside, export_to, open_targets

    inputs = (model, data, reading.arch)
    formats = open_targets(name for name in to if name != "onnx")
    onnx = "onnx" in to or not to
    base = Path(model.resolve().stem) if output is None else output
    several = len(formats) + onnx > 1
    places = [base if output and not several else beside(target, base) for target in formats]
    target = base if output and not several else base.with_name(f"{base.name}.onnx")
    if onnx and target.suffix != ".onnx":
        raise UsageError(f"--output {target}: expected a file that ends in .onnx")
    for place in [*places, *([target] if onnx else [])]:
        check_output(place, inputs, force=force)
        check_json(json, inputs, place)
        check_html(html, inputs, place, interactive=interactive)
    if several and (json or html):
        raise UsageError("--json and --html take the report of one format", "give one --to")
    loaded = load_model(model, reading.load_options())
    with progressing(quiet) as progress:
        options: Any = {"force": force, "command": command_line(), "progress": progress}
        made = [(export_to(loaded, to_, place, **options), place) for to_, place in zip(formats, places, strict=True)]
        if onnx:
            source = opener(loaded, None, 128, paths=[data])(data)
            made.append((export(loaded, target, data=source, seed=seed, **options), target))
    shown: Any = {"json": json, "html": html, "interactive": interactive, "quiet": quiet}
    codes = [finish(report, **shown, output=str(place)) for report, place in made]
    raise typer.Exit(max(codes))
