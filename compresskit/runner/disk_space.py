"""What a recipe will need of disk and memory, as far as the size of its model tells, and whether that is there."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compresskit.errors import MachineError
from compresskit.recipe.plan import Recipe
from compresskit.runner.candidate import files_of

_FORMS = 2
"""A model lies on disk as weights and as ONNX."""
_HELD, _TRAINED = 3, 6
"""Times the weights in memory: the model, its teacher or original, an export; and gradients with a step's state."""


@dataclass(frozen=True)
class Estimate:
    """Bytes, rounded up rather than down; activations and data are not in it.

    Attributes:
        output: On the output's disk.
        cache: On that of the step cache: the original and each step.
        memory: At least.
    """

    output: int
    cache: int
    memory: int


def estimate(recipe: Recipe) -> Estimate | None:
    """What a recipe will need; None where it has no model that is there."""
    model = Path(recipe.model or "")
    if recipe.model is None or not model.exists():
        return None
    size = sum(path.stat().st_size for path in files_of(model))
    trains = any(step.stage.trains for step in recipe.steps)
    return Estimate(_FORMS * size, _FORMS * size * (len(recipe.steps) + 1), (_TRAINED if trains else _HELD) * size)


def check_room(recipe: Recipe, output: Path, cache: Path | None) -> None:
    """Refuse a run that can't end well for want of disk.

    Args:
        recipe: To be run.
        output: The folder to be written.
        cache: Where steps are kept; None is beside the output.

    Raises:
        MachineError: Says how much is missing, and where.
    """
    if (need := estimate(recipe)) is None:
        return
    wanted: dict[int, tuple[Path, int]] = {}
    for place, size in ((output, need.output), (output if cache is None else cache, need.cache)):
        folder = next((p for p in (place.absolute(), *place.absolute().parents) if p.exists()), None)
        with suppress(OSError):
            if folder is not None:
                disk = folder.stat().st_dev
                wanted[disk] = (folder, wanted.get(disk, (folder, 0))[1] + size)
    for folder, size in wanted.values():
        with suppress(OSError):
            free = shutil.disk_usage(folder).free
            if free < size:
                raise MachineError(
                    f"the run needs about {size / 1e6:.0f} MB of disk at {folder}, {free / 1e6:.0f} MB are free",
                    "free some, or put the step cache elsewhere: `cache` FOLDER",
                )
