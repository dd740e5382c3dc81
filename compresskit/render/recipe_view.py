"""Recipes on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compresskit.errors import printable
from compresskit.recipe.outline import Outline
from compresskit.recipe.plan import Recipe
from compresskit.render.console import make_console
from compresskit.render.plan_view import print_plan

_DRAWN = 4
"""Points of a matrix whose plans are shown."""


def print_recipes(recipes: Sequence[Outline], console: Console | None = None) -> None:
    """A row a recipe: name, what it is for, steps."""
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("for what, and its steps")
    for recipe in recipes:
        table.add_row(
            Text(recipe.name), Text(f"{printable(recipe.description)}\n{' → '.join(map(printable, recipe.steps))}")
        )
    (console or make_console()).print(table)


def print_checked(points: Sequence[Recipe], file: str, console: Console | None = None) -> None:
    """What a good recipe will do, and what it leaves to the command line.

    Args:
        points: One recipe, or all of its matrix.
        file: As it was given.
        console: Where the first and the last line go; standard output by default.
    """
    console = console or make_console()
    first, several = points[0], f", {len(points)} points" * (len(points) > 1)
    count = f"{len(first.steps)} step{'s' * (len(first.steps) > 1)}"
    console.print(Text(f"valid: {printable(file)}, {count}{several}"))
    for point in points[:_DRAWN]:
        print_plan(point)
    if len(points) > _DRAWN:
        console.print(Text(f"and {len(points) - _DRAWN} more points"))
    given = {"model": first.model, "data": first.data, "eval-data": first.eval_data}
    if left := [name for name, value in given.items() if value is None]:
        console.print(Text(f"to be given on the command line: {', '.join(left)}"))
