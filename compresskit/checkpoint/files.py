"""What an input path may be, and how a file is mapped into memory."""

from __future__ import annotations

import json
import mmap
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from compresskit.errors import InputError, PathError


def regular_file(path: Path) -> int:
    """The size of a file that can be read, in bytes.

    Nothing is opened before it is known to be a regular file: opening a FIFO or a device may block or act.

    Raises:
        InputError: Missing, a folder, a device, FIFO or socket, empty, or not readable.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"'{path}' is not a path ({error})") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a folder, a file was expected")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file (a device, FIFO or socket)")
    if found.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)", "the download or copy was probably cut off; get the file again")
    return found.st_size


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for a path that the system won't let us read."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return PathError(f"{path} does not exist", "check the path")
    return InputError(f"cannot read {path}: {error.strerror or error}")


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file, copy on write: pages are read when touched, and the file can't be changed through the map.

    Raises:
        InputError: As :func:`regular_file`.
    """
    regular_file(path)
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"cannot read {path}: it changed while being opened ({error})") from error


def head(path: Path, count: int) -> bytes:
    """The first ``count`` bytes of a regular file.

    Raises:
        InputError: As :func:`regular_file`.
    """
    regular_file(path)
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise unreadable(path, error) from error


def parse_json(content: bytes) -> Any:
    """A JSON document whose numbers have at most 64 bits, and whose text every file format can hold.

    Raises:
        ValueError: It isn't one.
    """
    try:
        found = json.loads(content.decode("utf-8-sig"), parse_int=_whole)
        if b"\\u" in content:
            json.dumps(found, ensure_ascii=False).encode("utf-8")  # finds halves of surrogate pairs
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return found


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The JSON object in a file; see :func:`parse_json`.

    Args:
        path: The file.
        most: Its largest size, in bytes.

    Raises:
        InputError: As :func:`regular_file`, or it is larger, or holds something else.
    """
    if regular_file(path) > most:
        raise InputError(f"{path} is larger than {most} bytes, more than such a file takes")
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object")
    return found


def is_plain_name(name: str) -> bool:
    """True for a relative path without drive, root, ``..``, backslash or control character."""
    if not name or "\\" in name or ":" in name or any(ord(c) < 32 for c in name):
        return False
    return not (PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or ".." in name.split("/"))


def contained(folder: Path, name: str, what: str) -> Path:
    """The file ``name`` inside ``folder``, or a refusal.

    A link is followed only to another place inside the folder, or to the ``blobs`` of the Hugging Face cache that the
    folder belongs to: there every file of a snapshot is such a link.

    Args:
        folder: The folder that must hold the file.
        name: A relative path, as another file gives it.
        what: Which file gives it; for the message.

    Raises:
        InputError: The name is absolute, has ``..`` or leads outside the folder, or the file isn't there.
    """
    if not is_plain_name(name):
        raise InputError(f"{what} names the file '{name}', which is not a path inside {folder}")
    path = folder / name
    try:
        real, root = path.resolve(strict=True), folder.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{what} names the file '{name}', which is not in {folder}") from error
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise InputError(f"{what} names the file '{name}', a link that leads out of {folder}")
    regular_file(path)
    return path


def single_link(path: Path, what: str) -> None:
    """Refuse a symbolic link and a file with more than one hard link: both may show a file from elsewhere.

    Raises:
        InputError: It is one.
    """
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode) or found.st_nlink > 1:
        kind = "symbolic" if stat.S_ISLNK(found.st_mode) else "hard"
        raise InputError(f"{what}: '{path.name}' is a {kind} link", "replace it by a copy of the file")
