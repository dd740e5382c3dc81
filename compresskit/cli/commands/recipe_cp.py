"""``compresskit recipe cp``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a built-in recipe, as listed by recipe ls.", show_default=False)
]
Target = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FILE]", help="Target file or folder. (NAME.yaml in the current folder)", show_default=False
    ),
]


def command(name: Name, file: Target = None, quiet: shared.Quiet = False, force: shared.Force = False) -> None:
    """Copy a built-in recipe as a starting point for your own.

    An existing file is kept unless --force is given.
    """
    from compresskit.checkpoint.atomic import write_file
    from compresskit.cli.console import tell
    from compresskit.recipe import shipped

    source = shipped.named(name)
    target = Path(source.name) if file is None else file / source.name if file.is_dir() else file
    write_file(target, lambda path: path.write_bytes(source.read_bytes()), force=force)
    if not quiet:
        tell(f"Written to {target}")
