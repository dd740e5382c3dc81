"""Recipes on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compresskit.errors import printable
from compresskit.recipe.plan import Recipe, Step
from compresskit.recipe.tree import shown
from compresskit.render.console import make_console


def print_recipes(recipes: Sequence[Recipe], console: Console | None = None) -> None:
    """A row a recipe: name, what it is for, steps."""
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("for what, and its steps")
    for recipe in recipes:
        steps = " → ".join(step.stage.name() for step in recipe.steps)
        table.add_row(Text(recipe.name), Text(f"{printable(recipe.description)}\n{steps}"))
    (console or make_console()).print(table)


def print_checked(points: Sequence[Recipe], file: str, console: Console | None = None) -> None:
    """What a good recipe will do, and what it leaves to the command line.

    Args:
        points: One recipe, or all of its matrix.
        file: As it was given.
        console: Where to print; standard output by default.
    """
    console = console or make_console()
    first = points[0]
    count = len(first.steps)
    several = f", {len(points)} points" if len(points) > 1 else ""
    console.print(Text(f"good: {printable(file)}, {count} step{'s' * (count > 1)}{several}"))
    for place, step in enumerate(first.steps):
        console.print(Padding(Text(f"{place}  {_step(step, place, first)}"), (0, 0, 0, 2)))
    limits = {"max-drop": first.max_drop, "max-size": first.max_size, "min-speedup": first.min_speedup}
    if kept := [f"{name} {shown(value)}" for name, value in limits.items() if value is not None]:
        console.print(Padding(Text(f"checks: {', '.join(kept)}".replace("'", "")), (0, 0, 0, 2)))
    for key in first.point:
        values = list(dict.fromkeys(str(_plain(point.point[key])) for point in points))
        console.print(Padding(Text(f"matrix: {printable(key)} of {', '.join(values)}"), (0, 0, 0, 2)))
    given = {"model": first.model, "data": first.data, "eval-data": first.eval_data}
    if left := [name for name, value in given.items() if value is None]:
        console.print(Padding(Text(f"left to the command line: {', '.join(left)}"), (0, 0, 0, 2)))


def _step(step: Step, place: int, recipe: Recipe) -> str:
    varied = {key.split(".")[2].replace("-", "_") for key in recipe.point if key.startswith(f"steps.{place}.")}
    options = {name: getattr(step.stage, name) for name in type(step.stage).model_fields}
    words = [
        f"{name.replace('_', '-')} {'…' if name in varied else _plain(value)}"
        for name, value in options.items()
        if name in step.stage.model_fields_set
    ]
    words += [f"may cost {step.max_drop}"] if step.max_drop else []
    words += ["undone if it costs more"] if step.rollback else []
    return f"{step.stage.name()}{': ' if words else ''}{', '.join(words)}"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value))}]"
    return printable({True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value, 60)
