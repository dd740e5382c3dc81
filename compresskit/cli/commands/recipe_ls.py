"""``compresskit recipe ls``."""

from __future__ import annotations


def command() -> None:
    """List the recipes that come with compresskit.

    Each with what it is for and its steps. compresskit recipe show NAME prints one, with comments that say why.
    """
    from compresskit.recipe import shipped
    from compresskit.recipe.outline import outline
    from compresskit.render.recipe_view import print_recipes

    print_recipes([outline(name) for name in shipped.names()])
