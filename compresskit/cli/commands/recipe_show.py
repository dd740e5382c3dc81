"""``compresskit recipe show``."""

from __future__ import annotations

from typing import Annotated

import typer

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a built-in recipe, as listed by recipe ls.", show_default=False)
]


def command(name: Name) -> None:
    """Print a built-in recipe.

    The output is the file with its comments. compresskit recipe cp NAME writes a copy.
    """
    from compresskit.cli.console import write_out
    from compresskit.recipe import shipped

    write_out(shipped.named(name).read_text(encoding="utf-8"))
