"""``compresskit recipe show``."""

from __future__ import annotations

from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="NAME", help="As recipe ls lists it.", show_default=False)]


def command(name: Name) -> None:
    """Print a recipe that comes with compresskit.

    The file itself, with its comments: compresskit recipe cp NAME writes a copy to change.
    """
    from compresskit.cli.console import write_out
    from compresskit.recipe import shipped

    write_out(shipped.named(name).read_text(encoding="utf-8"))
