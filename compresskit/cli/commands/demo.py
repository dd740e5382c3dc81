"""``compresskit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

Folder = Annotated[Path, typer.Option("-o", "--output", help="Output folder.", rich_help_panel="Output")]


def command(
    output: Folder = Path("compresskit-demo"),
    seed: shared.Seed = 0,
    json: shared.Json = None,
    markdown: shared.Markdown = False,
    quiet: shared.Quiet = False,
    force: shared.Force = False,
) -> None:
    """Train, quantize, export and measure a small model as a demo.

    The demo trains a CNN on scikit-learn's handwritten digits, quantizes it to 8 and to 4 bits, searches for the
    smallest and fastest model that keeps the accuracy, and compares all results with the original. It prints the
    commands that do the same by hand. Needs the extra demo; takes about a minute and a half.
    """
    import sys

    from compresskit.cli.console import check_json, finish, progressing
    from compresskit.cli.demo import tour

    check_json(json, output=output)
    with progressing(quiet) as progress:
        say = (lambda _: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
        report = tour(output, seed=seed, force=force, say=say, progress=progress)
    raise typer.Exit(finish(report, json=json, quiet=quiet, markdown=markdown, output=str(output)))
