"""``compresskit recipe check``."""

from __future__ import annotations

from compresskit.cli import options as shared


def command(
    recipe: shared.RecipeArg,
    set_: shared.Sets = None,
    allow_code: shared.AllowCode = False,
    quiet: shared.Quiet = False,
) -> None:
    """Check a recipe and report all errors without running it.

    Each error is listed with its file and line, and the exit code is 2. The check covers keys, values, the order of
    steps, limits, the files that the recipe names, and its includes. A model or data that the recipe leaves to the
    command line is not an error.
    """
    from compresskit.recipe.reading import read_recipe
    from compresskit.render.recipe_view import print_checked

    found = read_recipe(recipe, sets=set_ or (), allow_code=allow_code)
    if not quiet:
        print_checked(found, str(recipe))
