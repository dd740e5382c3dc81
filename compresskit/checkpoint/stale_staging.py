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


def start(stage: Path) -> int | None:
    """Make a staging folder and mark it as in use; the mark goes with the process.

    Between the two steps the folder looks like a dead process's, and the sweep of another run may remove it; then it
    is made again.

    Returns:
        What :func:`release` takes; None where folders can't be locked.

    Raises:
        OSError: The folder can't be made, or exists already.
    """
    while True:
        stage.mkdir(mode=0o700)
        handle = _lock(stage, wait=True)
        if stage.is_dir():
            return handle
        release(handle)


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
            if ours and stage.is_dir() and not stage.is_symlink():
                _clear_dead(stage, folder / name)


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


def _clear_dead(stage: Path, target: Path) -> None:
    """Clear a staging folder that no living process uses; it stays locked until it is gone."""
    if os.name == "nt":  # no locks on folders: only what is surely old
        with contextlib.suppress(OSError):
            if time.time() - stage.stat().st_mtime > _DAY:
                clear(stage, target)
        return
    handle = _lock(stage, wait=False)
    if handle is not None:
        try:
            clear(stage, target)
        finally:
            release(handle)


def _lock(stage: Path, *, wait: bool) -> int | None:
    """Lock a folder; None where that can't be done, where it is gone by then, or, unless ``wait``, locked already."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        handle = os.open(stage, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), stage.stat()):  # else it was removed, and perhaps made anew
            return handle
    except OSError:
        pass
    os.close(handle)
    return None
