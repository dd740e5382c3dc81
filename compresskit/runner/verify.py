"""A run repeated, and its bytes compared with those of the first run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compresskit.checkpoint.bundle import read_card
from compresskit.errors import InputError
from compresskit.recipe.plan import Recipe
from compresskit.runner.keys import surroundings
from compresskit.runner.pipeline import run_recipe
from compresskit.runner.provenance import differences, files_of_result, inputs_of, read_provenance
from compresskit.stage import Progress, say_nothing, silent


@dataclass(frozen=True)
class Verified:
    """What a repeated run came to.

    Attributes:
        files: Each file of the result: ``same``, ``differs``, ``missing`` (this time) or ``new``.
        differences: Fields of the surroundings that are not what they were.
    """

    files: dict[str, str]
    differences: list[str]

    @property
    def same(self) -> bool:
        """Whether every file came out the same."""
        return set(self.files.values()) <= {"same"}


def verify(
    folder: Path,
    recipe: Recipe,
    *,
    progress: Progress = silent,
    tell: Callable[[str], None] = say_nothing,
) -> Verified:
    """Repeat the run of a bundle, without a cache, and compare what comes out.

    Args:
        folder: What ``run`` wrote.
        recipe: The one of its provenance, its inputs found.
        progress: Called from time to time as ``progress(what, done, total)``.
        tell: Shows the user a line right away.

    Raises:
        InputError: The bundle is damaged, or an input isn't what it was.
    """
    read_card(folder)
    then = read_provenance(folder)
    found = inputs_of(recipe)
    for name, known in then.inputs.items():
        option = name.replace("-", "_")
        if name not in found:
            raise InputError(f"the run had a {name}, which isn't found here", f"say where it is: `{option}`")
        if found[name] != known:
            raise InputError(f"the {name} is not the one of the run: its SHA-256 differs", f"give the right `{option}`")
    with tempfile.TemporaryDirectory(prefix="compresskit-") as place:
        again = Path(place) / "again"
        run_recipe(recipe, again, bench=False, progress=progress, tell=tell)
        now = files_of_result(again)
    files = {}
    for name in sorted({*then.files, *now}):
        old, new = then.files.get(name), now.get(name)
        files[name] = "same" if old == new else "missing" if new is None else "new" if old is None else "differs"
    return Verified(files, differences(then.surroundings, surroundings(recipe.threads)))
