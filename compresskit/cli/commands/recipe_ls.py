"""``compresskit recipe ls``."""

from __future__ import annotations


def command() -> None:
    """List the built-in recipes.

    Each line shows the purpose and the steps of a recipe. compresskit recipe show NAME prints a recipe with its
    comments.
    """
    from compresskit.recipe import shipped
    from compresskit.recipe.outline import outline
    from compresskit.render.recipe_view import print_recipes

    print_recipes([outline(name) for name in shipped.names()])
