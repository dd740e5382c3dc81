"""A recipe before it runs: its steps, with what each takes and gives."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from compresskit.recipe.plan import Recipe
from compresskit.render import figures
from compresskit.render.console import make_console
from compresskit.runner.disk_space import Estimate


def print_plan(recipe: Recipe) -> None:
    """Draw a recipe."""
    console = make_console()
    point = ", ".join(f"{key}={value}" for key, value in recipe.point.items())
    title = f"{recipe.name}{f' ({point})' if point else ''}: {recipe.model or 'no model yet'}"
    console.print(Text(figures.clean(title), style="bold"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in ("", "step", "options", "limit"):
        table.add_column(column, overflow="fold")
    for index, step in enumerate(recipe.steps):  # counted as steps.0.bits counts them
        options = {name: getattr(step.stage, name) for name in sorted(step.stage.model_fields_set)}
        shown = ", ".join(f"{name.replace('_', '-')}: {value}" for name, value in options.items())
        limit = " ".join([*([step.max_drop] if step.max_drop else []), *(["else undone"] if step.rollback else [])])
        table.add_row(str(index), Text(step.stage.name()), Text(figures.clean(shown)), limit)
    console.print(table)
    checks = {"max-drop": recipe.max_drop, "max-size": recipe.max_size, "min-speedup": recipe.min_speedup}
    named = ", ".join(f"{name} {value}" for name, value in checks.items() if value is not None)
    console.print(Text(f"checks: {named or 'the default ones'}"))


def print_need(need: Estimate) -> None:
    """Draw what a recipe will need of the machine."""
    output, cache, memory = (figures.size(count) for count in (need.output, need.cache, need.memory))
    text = f"needs about {output} of disk for the output, {cache} for its steps, {memory} of memory and what data take"
    make_console().print(Text(text))
