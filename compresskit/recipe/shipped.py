"""The recipes that come with the package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from compresskit.errors import UsageError

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE / "files", _HERE.parents[1] / "recipes")
"""As installed, and in a checkout."""


def folder() -> Path:
    """Where they lie."""
    return next((path for path in _FOLDERS if path.is_dir()), _FOLDERS[0])


def names() -> list[str]:
    """All of them, in the order of the alphabet."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def path_of(name: str) -> Path | None:
    """The file of one, by its name with or without ``.yaml``; None where none is called so."""
    name = name.removesuffix(".yaml")
    return folder() / f"{name}.yaml" if name in names() else None


def named(name: str) -> Path:
    """The file of one.

    Raises:
        UsageError: None is called so; the nearest name is given.
    """
    path = path_of(name)
    if path is None:
        near = get_close_matches(name, names(), 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names())}"
        raise UsageError(f"there is no recipe '{name}'", hint)
    return path
