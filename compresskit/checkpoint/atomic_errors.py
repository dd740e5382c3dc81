"""What went wrong while writing, in one line: full, read-only, not allowed."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from compresskit.errors import MachineError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, or give an `output` on another disk"),
    getattr(errno, "EDQUOT", -1): ("the disk quota is used up", "free some space, or give an `output` on another disk"),
    errno.EFBIG: ("the file is larger than this file system or its limit allows", "give an `output` on another disk"),
    errno.EROFS: ("the file system is read-only", "give an `output` in another place"),
    errno.EACCES: ("there is no permission to write there", "give an `output` in another place"),
    errno.EPERM: ("there is no permission to write there", "give an `output` in another place"),
    errno.ENOTDIR: ("a parent of it is a file and not a folder", "give another `output`"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter `output`"),
}
_SAID = {
    "No space left": errno.ENOSPC, "not enough space": errno.ENOSPC, "unexpected pos": errno.ENOSPC,
    "failed writing file": errno.ENOSPC, "quota exceeded": errno.ENOSPC, "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES, "cannot be opened": errno.EACCES, "Access is denied": errno.EACCES,
}  # fmt: skip
"""What torch, onnx and safetensors say, in RuntimeErrors and kinds of their own, when a write fails."""


def machine_error(path: Path, error: OSError) -> MachineError:
    """The error for a write that the system refused."""
    reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), ""))
    return MachineError(f"cannot write {path}: {reason}", hint)


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Within it a failed write becomes a MachineError, also where a library wraps it in a kind of its own.

    Args:
        path: What is being written; for the message.

    Raises:
        MachineError: The write failed.
    """
    path = Path(path)
    try:
        yield
    except OSError as error:
        raise machine_error(path, error) from error
    except MemoryError as error:
        raise MachineError(f"cannot write {path}: not enough memory") from error
    except Exception as error:
        code = next((code for said, code in _SAID.items() if said.lower() in str(error).lower()), None)
        if code is None:
            raise
        raise machine_error(path, OSError(code, "")) from error
