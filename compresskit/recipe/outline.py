"""What a recipe says of itself, unchecked: one that lacks an extra here is listed too."""

from __future__ import annotations

from dataclasses import dataclass

from compresskit.recipe import including
from compresskit.recipe.addresses import is_method
from compresskit.recipe.problems import Problems


@dataclass(frozen=True)
class Outline:
    """A recipe in a list.

    Attributes:
        name: Of the recipe.
        description: Its own line; empty where it has none.
        steps: Its methods, in order.
    """

    name: str
    description: str
    steps: tuple[str, ...]


def outline(name: str) -> Outline:
    """The outline of a built-in recipe.

    Raises:
        RecipeError: It is no YAML.
    """
    problems = Problems()
    root = including.read(name, problems)
    problems.raise_any()
    plain = {} if root is None else root.plain()
    steps = [step if isinstance(step, str) else next(filter(is_method, step), "") for step in plain.get("steps", [])]
    return Outline(name, str(plain.get("description", "")), tuple(steps))
