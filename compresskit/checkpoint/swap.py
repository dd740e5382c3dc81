"""Renames that leave the old thing or the new one, whatever happens in between."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

OLD = "old"
_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_SWAP, _EXCL = 2, 4
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def exchange_folders(staged: Path, target: Path) -> None:
    """Put the staged folder in the target's place; the old one ends up where the staged one was, or beside it.

    On Linux and macOS the two names are exchanged in one step. Elsewhere the old folder is first moved into the staging
    folder, as ``old``; if the process dies between the two renames, the next run's sweep finishes the second one.

    Raises:
        OSError: The system refused; the target is as it was.
    """
    if _exchange(staged, target):
        return
    aside = staged.parent / OLD
    try:
        target.rename(aside)
        staged.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise


def move_new(staged: Path, target: Path) -> None:
    """Move into a place that must be free.

    Raises:
        OSError: It isn't (``FileExistsError``), or the system refused.
    """
    if _rename(staged, target, _NOREPLACE, _EXCL):
        return
    if target.exists():  # without the system's help this check is all there is
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    staged.rename(target)


def _exchange(first: Path, second: Path) -> bool:
    return _rename(first, second, _EXCHANGE, _SWAP)


def _rename(source: Path, target: Path, linux: int, macos: int) -> bool:
    """Rename with flags; False where the system or the file system has no such thing."""
    a, b = os.fsencode(source), os.fsencode(target)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            failed = library.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, ctypes.c_uint(linux))
        elif sys.platform == "darwin":
            failed = library.renamex_np(a, b, ctypes.c_uint(macos))
        else:
            return False
    except (OSError, TypeError, AttributeError):
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(target))
