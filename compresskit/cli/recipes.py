"""Running the recipes of one file: one, or each point of its matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compresskit.cli.console import check_html, check_output, drawing, progressing, tell, write_page
from compresskit.cli.inputs import command_line, default_output
from compresskit.cli.option_groups import Showing
from compresskit.errors import ExitCode, UsageError
from compresskit.recipe.head import CODE, PATH
from compresskit.recipe.naming import named_by
from compresskit.recipe.plan import Recipe
from compresskit.report import PAGE, Report
from compresskit.runner.cache import Cache
from compresskit.runner.pipeline import run_recipe
from compresskit.stage import say_nothing


@dataclass(frozen=True)
class Running:
    """How recipes are run, and what is shown of it.

    Attributes:
        cache: Where finished steps are kept; None for this run only.
        bench: Measure the speed.
        showing: Where reports go.
        force: As ``--force``.
        pages: Put a report.html beside each report.json.
    """

    cache: Cache | None
    bench: bool
    showing: Showing
    force: bool
    pages: bool = True


def run_all(recipes: Sequence[Recipe], output: Path | None, running: Running) -> int:
    """Run recipes; the points of a matrix go into folders of their own in ``output``.

    Returns:
        The exit code: that of the one recipe, or GATE where any point's verdict says so.

    Raises:
        UsageError: An output that exists, is an input, or can't be told apart.
    """
    first = recipes[0]
    if first.model is None:
        raise UsageError("the recipe names no model", "give one: compresskit run RECIPE MODEL")
    target = output or default_output(Path(first.model), first.name)
    if first.point:
        return _run_matrix(recipes, target, running)
    return running.showing.finish(run_one(first, target, running), str(target))


def _run_matrix(recipes: Sequence[Recipe], target: Path, running: Running) -> int:
    """Run each point of a matrix, and show them side by side; returns the exit code."""
    showing = running.showing
    if showing.json == "-":
        raise UsageError(
            "--json - is for one report, a matrix gives several", "each point's folder has its report.json"
        )
    places = [target / _folder(recipe) for recipe in recipes]
    for recipe, place in zip(recipes, places, strict=True):
        check_output(place, _inputs(recipe), force=running.force)
    page = _page_of_matrix(recipes[0], target, running)
    reports = []
    for index, (recipe, place) in enumerate(zip(recipes, places, strict=True), 1):
        if not showing.quiet:
            tell(f"point {index} of {len(recipes)}: {place.name}")
        reports.append(run_one(recipe, place, running))
    names = [place.name for place in places]
    if page is not None:
        from compresskit.render.html import joined

        write_page(joined(names, reports), page, interactive=showing.interactive)
    if not showing.quiet:
        from compresskit.render.matrix import print_matrix

        print_matrix(names, reports, markdown=showing.markdown)
    return int(max((report.exit_code() for report in reports), default=ExitCode.OK))


def _page_of_matrix(recipe: Recipe, target: Path, running: Running) -> Path | None:
    """Where the page of all points goes; None where none is drawn.

    Raises:
        UsageError: It can't be written there.
    """
    html = running.showing.html
    page = html or (target / PAGE if running.pages else None)
    if html or running.showing.interactive or (page is not None and page.exists()):
        option = "the page of the matrix," if page and not html else "--html"
        check_html(page, _inputs(recipe), option=option, interactive=running.showing.interactive)
    return page


def run_one(recipe: Recipe, target: Path, running: Running) -> Report:
    """Run one recipe into ``target``."""
    inputs, showing = _inputs(recipe), running.showing
    check_output(target, inputs, force=running.force)
    own = replace(showing, html=None, interactive=False) if recipe.point else showing
    own.check(inputs, target, beside=running.pages)
    draw = drawing(interactive=showing.interactive) if running.pages else None
    with progressing(showing.quiet) as progress:
        return run_recipe(
            recipe, target, bench=running.bench, cache=running.cache, force=running.force, command=command_line(),
            progress=progress, tell=say_nothing if showing.quiet else tell, draw=draw,
        )  # fmt: skip


def show_plan(recipes: Sequence[Recipe]) -> None:
    """What would be run."""
    from compresskit.render.plan_view import print_need, print_plan
    from compresskit.runner.disk_space import estimate

    for recipe in recipes:
        print_plan(recipe)
    if (need := estimate(recipes[0])) is not None:
        print_need(need)


def _inputs(recipe: Recipe) -> tuple[str | None, ...]:
    named = [word for step in recipe.steps for word in named_by(step.stage, PATH, CODE)]
    words = (recipe.model, recipe.data, recipe.eval_data, recipe.arch, recipe.metric, *named)
    return tuple(None if word is None else str(word) for word in words)


def _folder(recipe: Recipe) -> str:
    """A point's values as the name of a folder: ``bits=4,ratio=0.5``."""
    named = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in recipe.point.items())
    return "".join(c if c.isalnum() or c in "=,.-_%" else "_" for c in named)[:100]
