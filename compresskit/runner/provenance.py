"""Where a bundle comes from: enough to make it again, and to tell why another machine's bytes differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from compresskit.checkpoint.bundle import ASIDE, PROVENANCE_NAME, sha256
from compresskit.errors import InputError, PathError
from compresskit.recipe.plan import Recipe
from compresskit.report import StepEntry
from compresskit.runner.keys import content, digest

VERSION = 1
_LARGEST = 1 << 24


class Provenance(BaseModel):
    """A provenance file.

    Attributes:
        version: Of this form.
        recipe: What was run, as the mapping of a recipe file; absolute paths are cut.
        inputs: SHA-256 of what the recipe names, by the key that names it.
        surroundings: Machine, versions and code; see :func:`compresskit.runner.keys.surroundings`.
        steps: Name and state of each step.
        files: SHA-256 of each file of the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    recipe: dict[str, Any]
    inputs: dict[str, str]
    surroundings: dict[str, Any]
    steps: list[tuple[str, str]]
    files: dict[str, str]


def provenance(recipe: Recipe, surroundings: dict[str, Any], steps: Sequence[StepEntry], folder: Path) -> Provenance:
    """What is to be known of a result.

    Args:
        recipe: What was run.
        surroundings: What it was run in.
        steps: The result of each step.
        folder: The result, whole but for its card and report.
    """
    return Provenance(
        version=VERSION,
        recipe=recipe.document(),
        inputs=inputs_of(recipe),
        surroundings=surroundings,
        # A step that was found in the cache was done all the same.
        steps=[(step.name, "undone" if step.state == "undone" else "done") for step in steps],
        files=files_of_result(folder),
    )


def inputs_of(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the files and folders that a recipe names, by its keys; those that aren't there are left out."""
    named = {"model": recipe.model, "data": recipe.data, "eval-data": recipe.eval_data, "metric": recipe.metric}
    named["arch"] = recipe.arch
    found = {}
    for key, word in named.items():
        file = (word or "").rpartition(":")[0]
        place = Path(file if file.endswith(".py") else word or "")
        if word and place.exists():
            found[key] = content(place) if key == "model" or place.is_file() else _folder(place)
    return found


def _folder(path: Path) -> str:
    """Of a folder of data: names and sizes; its samples' own hash is in the steps' keys."""
    return digest([(p.relative_to(path).as_posix(), p.stat().st_size) for p in sorted(path.rglob("*")) if p.is_file()])


def files_of_result(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a recipe's bytes are: all but the card, and those that tell of measurements."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        name.as_posix(): sha256(folder / name)
        for name in names
        if name.as_posix() not in ASIDE and not any(part.startswith(".") for part in name.parts)
    }


def read_provenance(folder: Path) -> Provenance:
    """The provenance file of a bundle.

    Raises:
        InputError: There is none, or it isn't one.
    """
    path = folder / PROVENANCE_NAME
    if not folder.exists():
        raise PathError(f"{folder} does not exist", "check the path")
    if not path.is_file():
        raise InputError(f"{folder} has no {PROVENANCE_NAME}", "compresskit run writes one")
    if path.stat().st_size > _LARGEST:
        raise InputError(f"{path} is larger than any provenance file")
    try:
        found = Provenance.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise InputError(f"{path} is not a provenance file: {where}: {first['msg']}") from error
    if found.version != VERSION:
        raise InputError(f"{path} is of version {found.version}, this program reads {VERSION}", "upgrade compresskit")
    return found


def differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two surroundings differ, as ``packages.torch: 2.13.0 then, 2.14.0 now``."""
    found = []
    for name in sorted({*then, *now}):
        old, new = then.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {_short(old)} then, {_short(new)} now")
    return found


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "none" if value is None else text if len(text) <= 80 else f"{text[:12]}…"
