"""What a killed process leaves: a hidden staging folder, told from a living process's by its lock, and swept."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from compresskit.checkpoint.swap import OLD

_DAY = 86_400.0
_MARK = ".compresskit-"


def lock(stage: Path) -> int | None:
    """Mark a staging folder as in use; the mark goes with the process. None where folders can't be locked."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        handle = os.open(stage, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def release(handle: int | None) -> None:
    """Take the mark away."""
    if handle is not None:
        os.close(handle)


def sweep(target: Path) -> None:
    """Remove the staging folders of dead processes beside a target; finish a replacement that one died in.

    Whatever can't be removed is left: debris is no reason to fail.
    """
    sweep_folder(target.parent, only=target.name)


def sweep_folder(folder: Path, only: str | None = None) -> None:
    """As :func:`sweep`, for every target that ever was written into a folder, or the one that is called ``only``."""
    with contextlib.suppress(OSError):
        for stage in sorted(folder.iterdir()):
            name, mark, _ = stage.name[1:].rpartition(_MARK)
            ours = stage.name.startswith(".") and mark and only in (None, name)
            if ours and stage.is_dir() and not stage.is_symlink() and _dead(stage):
                clear(stage, folder / name)


def clear(stage: Path, target: Path) -> None:
    """Remove a staging folder, but never the only copy of the target.

    Where the old folder was moved aside and nothing took its place, the new one, whole and synced by then, is put
    there, or else the old one.
    """
    if (stage / OLD).is_dir():
        for candidate in (stage / target.name, stage / OLD):
            with contextlib.suppress(OSError):
                if not target.exists():
                    candidate.rename(target)
        if not target.exists():
            return
    shutil.rmtree(stage, ignore_errors=True)


def _dead(stage: Path) -> bool:
    if os.name == "nt":  # no locks on folders: only what is surely old
        with contextlib.suppress(OSError):
            return time.time() - stage.stat().st_mtime > _DAY
        return False
    handle = lock(stage)
    release(handle)
    return handle is not None
