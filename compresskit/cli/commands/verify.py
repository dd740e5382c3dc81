"""``compresskit verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compresskit.cli import options as shared

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Bundle that compresskit run wrote.", show_default=False)
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", metavar="MODEL", help="Current path of the original.", show_default=False)
]


def command(
    folder: Folder,
    model: ModelOption = None,
    arch: shared.Arch = None,
    data: shared.Data = None,
    eval_data: shared.EvalData = None,
    metric: shared.MetricName = None,
    allow_code: shared.AllowCode = False,
    quiet: shared.Quiet = False,
) -> None:
    """Repeat the run that made a bundle, and compare the bytes.

    The file provenance.json describes the run. Inputs are read from their original paths, relative to the current
    folder, or from the paths given by options; they must be the same bytes. Exit code 0: every file is the same. Exit
    code 1: a file differs; every difference of machine and versions is listed.
    """
    from compresskit.checkpoint.bundle import PROVENANCE_NAME
    from compresskit.cli.console import progressing, tell
    from compresskit.recipe.reading import parse_recipe
    from compresskit.render.verify_view import print_verified
    from compresskit.runner.provenance import read_provenance
    from compresskit.runner.verify import verify
    from compresskit.stage import say_nothing

    given: dict[str, Any] = {"model": model, "arch": arch, "data": data, "eval-data": eval_data, "metric": metric}
    overrides = {name: str(value) for name, value in given.items() if value is not None}
    known = read_provenance(folder)
    recipe = parse_recipe(known.recipe, str(folder / PROVENANCE_NAME), overrides=overrides, allow_code=allow_code)
    with progressing(quiet) as progress:
        found = verify(folder, recipe, progress=progress, tell=say_nothing if quiet else tell)
    if not quiet:
        print_verified(folder, found)
    raise typer.Exit(0 if found.same else 1)
