"""Results of finished steps, each in a folder that is named after the hash of all that it depends on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.checkpoint.atomic import new_file, new_folder
from compresskit.checkpoint.bundle import is_bundle, read_card
from compresskit.checkpoint.stale_staging import sweep_folder
from compresskit.errors import InputError, MachineError, UsageError
from compresskit.recipe.limits import parse_size
from compresskit.runner.keys import digest

ABOUT = "step.json"
"""In an entry: what is known of the step besides the model."""
_PLACE, _MOST = "COMPRESSKIT_CACHE", "COMPRESSKIT_CACHE_SIZE"
_DEFAULT_MOST = "20GB"
_FIGURES = "figures"


@dataclass(frozen=True)
class Entry:
    """One finished step.

    Attributes:
        path: Its folder, a bundle.
        about: What the step found out, as JSON.
        bytes: What it takes on disk.
        used: When it was last used, in seconds since 1970.
    """

    path: Path
    about: dict[str, Any]
    bytes: int
    used: float


@dataclass(frozen=True)
class Cache:
    """A folder of entries.

    Attributes:
        root: Made when something is put into it.
    """

    root: Path

    @classmethod
    def default(cls) -> Cache:
        """Where ``COMPRESSKIT_CACHE`` says, else the user's cache folder of this system."""
        if given := os.environ.get(_PLACE):
            return cls(Path(given))
        from platformdirs import user_cache_path

        return cls(user_cache_path("compresskit", appauthor=False) / "steps")

    def find(self, key: str) -> Path | None:
        """The entry of a key; one whose files aren't those on record is removed, and counts as missing."""
        place = self.root / key
        if not is_bundle(place):
            return None
        try:
            read_card(place)
            about(place)
        except InputError:
            shutil.rmtree(place, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(place)
        return place

    @contextmanager
    def fill(self, key: str) -> Iterator[Path]:
        """A folder to write an entry into; it counts when the block ends well.

        Raises:
            MachineError: The disk is full, or the cache may not be written to.
        """
        place = self.root / key
        try:
            with new_folder(place, force=True) as folder:
                yield folder
        except MachineError as error:
            if str(self.root) not in error.message:
                raise
            raise MachineError(error.message, f"the step cache is at {self.root}; elsewhere: `cache` FOLDER") from error

    def recall(self, key: str) -> dict[str, Any] | None:
        """Figures that were remembered under a key; None where there are none that can be trusted."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.root / _FIGURES / f"{key}.json").read_bytes())
            if digest(found["figures"]) == found["sha256"]:
                figures: dict[str, Any] = found["figures"]
                return figures
        return None

    def remember(self, key: str, figures: dict[str, Any]) -> None:
        """Keep figures under a key."""
        text = json.dumps({"figures": figures, "sha256": digest(figures)})
        with new_file(self.root / _FIGURES / f"{key}.json", force=True) as path:
            path.write_text(text, encoding="utf-8")

    def entries(self) -> list[Entry]:
        """All entries, the last used first."""
        found = []
        for place in self.root.iterdir() if self.root.is_dir() else ():
            if not is_bundle(place):
                continue
            with contextlib.suppress(OSError, InputError):
                size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
                found.append(Entry(place, about(place), size, place.stat().st_mtime))
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> int:
        """Remove all entries and figures; returns the bytes that this freed.

        Raises:
            UsageError: The folder holds something that is no entry: then nothing is removed.
            MachineError: It may not be written to.
        """
        strange = [p.name for p in self.root.iterdir() if not _ours(p)] if self.root.is_dir() else []
        if strange:
            raise UsageError(f"{self.root} holds {strange[0]}, which is none of the cache's", "remove it by hand")
        freed = sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file()) if self.root.is_dir() else 0
        try:
            if self.root.is_dir():
                shutil.rmtree(self.root)
        except OSError as error:
            raise MachineError(f"cannot remove {self.root}: {error.strerror}") from error
        return freed

    def tidy(self, keep: set[Path]) -> None:
        """Remove what killed runs left, and then what was not used for longest, down to ``COMPRESSKIT_CACHE_SIZE``.

        Args:
            keep: Entries that stay whatever the size.
        """
        for folder in (self.root, self.root / _FIGURES):
            sweep_folder(folder)
        room = parse_size(os.environ.get(_MOST) or _DEFAULT_MOST)
        for entry in self.entries():
            room -= entry.bytes
            if room < 0 and entry.path not in keep:
                shutil.rmtree(entry.path, ignore_errors=True)


def about(place: Path) -> dict[str, Any]:
    """What the step of an entry found out.

    Raises:
        InputError: It can't be read.
    """
    try:
        found = json.loads((place / ABOUT).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{place / ABOUT} can't be read") from error
    if not isinstance(found, dict):
        raise InputError(f"{place / ABOUT} is not a JSON object")
    return found


def _ours(path: Path) -> bool:
    """An entry, the figures, or the folder in which an entry was being written."""
    return is_bundle(path) or path.name == _FIGURES or ".compresskit-" in path.name
