"""``compresskit recipe check``."""

from __future__ import annotations

from compresskit.cli import options as shared


def command(
    recipe: shared.RecipeArg,
    set_: shared.Sets = None,
    allow_code: shared.AllowCode = False,
    quiet: shared.Quiet = False,
) -> None:
    """Check a recipe whole, without running anything.

    Everything that is wrong is said at once, each with its file and line, and the exit code is 2. Keys, values, the
    order of steps, limits and the files it names are checked, and what it includes. A model or data that it leaves to
    the command line are not missed.
    """
    from compresskit.recipe.reading import read_recipe
    from compresskit.render.recipe_view import print_checked

    found = read_recipe(recipe, sets=set_ or (), allow_code=allow_code)
    if not quiet:
        print_checked(found, str(recipe))
