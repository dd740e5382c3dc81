"""Outputs that are whole or not there: written beside the target, synced, and renamed into place."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from compresskit.checkpoint import swap
from compresskit.checkpoint.atomic_errors import machine_error, writing
from compresskit.checkpoint.stale_staging import clear, release, start, sweep
from compresskit.checkpoint.terminate import terminating_as_exception
from compresskit.errors import UsageError

__all__ = ["new_file", "new_folder", "refuse_same", "refuse_within", "write_file", "writing"]

CARD_NAME = "compresskit.json"


def write_file(path: Path | str, writer: Callable[[Path], object], *, force: bool = False) -> None:
    """Write a file through ``writer``, which is given the path to write to; see :func:`new_file`."""
    with new_file(path, force=force) as staged:
        writer(staged)


@contextlib.contextmanager
def new_file(path: Path | str, *, force: bool = False) -> Iterator[Path]:
    """A path to write to; when the block ends well the file there takes its place, else nothing stays.

    Args:
        path: The file in the end. A link is followed; missing parent folders are made.
        force: Replace an existing file, which is kept until the new one is whole.

    Raises:
        UsageError: The target exists and ``force`` isn't given, or is no regular file.
        MachineError: The disk is full or read-only, or the place may not be written to.
    """
    target = _target(path)
    _check_file_target(target, force)
    with _stage(target) as staged:
        yield staged
        with writing(target):
            if not staged.is_file():
                raise FileNotFoundError(f"nothing was written to {staged.name}")
            _sync_file(staged)
            if force:
                staged.replace(target)
            else:
                swap.move_new(staged, target)
            _sync_folder(target.parent)


def _is_bundle(folder: Path) -> bool:
    return (folder / CARD_NAME).is_file()


@contextlib.contextmanager
def new_folder(path: Path | str, *, force: bool = False, ours: Callable[[Path], bool] = _is_bundle) -> Iterator[Path]:
    """A folder to write into; when the block ends well it takes its place in one step, else nothing stays.

    Args:
        path: The folder in the end. A link is followed; missing parent folders are made.
        force: Replace a folder that this program wrote; it is kept until the new one is whole.
        ours: Tells whether this program wrote a folder; by default, whether it is a bundle.

    Raises:
        UsageError: The target exists and ``force`` isn't given, or is something that this program did not write.
        MachineError: The disk is full or read-only, or the place may not be written to.
    """
    target = _target(path)
    _check_folder_target(target, force, ours)
    with _stage(target) as staged:
        with writing(target):
            staged.mkdir()
        yield staged
        with writing(target):
            _sync_tree(staged)
            try:
                _put_folder(staged, target, force, ours)
            except FileExistsError:  # another run was first, since we looked: now it is there
                _put_folder(staged, target, force, ours)
            _sync_folder(target.parent)


def _put_folder(staged: Path, target: Path, force: bool, ours: Callable[[Path], bool]) -> None:
    """Move a staged folder to its place, or in the place of what is there."""
    if target.exists():
        _check_folder_target(target, force, ours)
        swap.exchange_folders(staged, target)
    else:
        swap.move_new(staged, target)


def refuse_same(source: Path | str, output: Path | str) -> None:
    """Refuse an output that is the input, lies inside it, or holds it; links are seen through.

    Raises:
        UsageError: It does.
    """
    source, output = Path(source), Path(output)
    hint = "give another `output`"
    with contextlib.suppress(OSError):
        if source.samefile(output):
            raise UsageError(f"the output {output} is the input {source}; inputs are never changed", hint)
    real_in, real_out = Path(os.path.realpath(source)), Path(os.path.realpath(output))
    if real_in == real_out:
        raise UsageError(f"the output {output} is the input {source}; inputs are never changed", hint)
    if real_in in real_out.parents:
        raise UsageError(f"the output {output} lies inside the input {source}; inputs are never changed", hint)
    if real_out in real_in.parents and real_out.exists():
        raise UsageError(f"the input {source} lies inside the output {output}, which would be replaced", hint)


def refuse_within(folder: Path | str, output: Path | str) -> None:
    """Refuse a folder that is written along the way and lies in the output, which is to appear whole at the end.

    Raises:
        UsageError: It does, or it is a file.
    """
    real_in, real_out = Path(os.path.realpath(folder)), Path(os.path.realpath(output))
    if real_out in (real_in, *real_in.parents):
        raise UsageError(
            f"the folder {folder} lies in the output {output}, which is written at the end", "give another"
        )
    if real_in.exists() and not real_in.is_dir():
        raise UsageError(f"{folder} is a file, a folder is to be written")


def _target(path: Path | str) -> Path:
    target = Path(path)
    if not target.name or target.name == "..":
        target = target.resolve()
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _check_file_target(target: Path, force: bool) -> None:
    try:
        found = target.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise machine_error(target, error) from error
    if stat.S_ISDIR(found.st_mode):
        raise UsageError(f"the output {target} is a folder, a file is to be written")
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"the output {target} is not a regular file (a device, FIFO or socket)")
    if not force:
        raise UsageError(f"the output {target} exists already", "pass `force` to replace it")


def _check_folder_target(target: Path, force: bool, ours: Callable[[Path], bool]) -> None:
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise UsageError(f"the output {target} is a file, a folder is to be written")
        empty = next(target.iterdir(), None) is None
    except OSError as error:
        raise machine_error(target, error) from error
    if empty:
        return
    if not ours(target):
        raise UsageError(
            f"the output {target} is a folder that compresskit did not write", "choose another, or remove it"
        )
    if not force:
        raise UsageError(f"the output {target} exists already", "pass `force` to replace it")


@contextlib.contextmanager
def _stage(target: Path) -> Iterator[Path]:
    """A path of the target's own name in a hidden folder beside it; the folder is removed whatever happens."""
    made: list[Path] = []
    # Named before it is made: a signal in between leaves nothing that isn't known.
    stage = target.parent / f".{target.name}.compresskit-{secrets.token_hex(4)}"
    handle: int | None = None
    try:
        with terminating_as_exception():
            with writing(target):
                handle = _start(stage, target, made)
            try:
                yield stage / target.name
            except OSError as error:
                if _about(error, stage):
                    raise machine_error(target, error) from error
                raise
    finally:
        _clean_up(stage, target, made)
        release(handle)


def _start(stage: Path, target: Path, made: list[Path]) -> int | None:
    """Make the stage and the missing parents, which another run that made them may remove again as it ends."""
    for _ in range(9):
        _make_parents(target, made)
        sweep(target)
        with contextlib.suppress(FileNotFoundError):
            return start(stage)
    _make_parents(target, made)
    return start(stage)


def _clean_up(stage: Path, target: Path, made: list[Path]) -> None:
    """Remove the stage, and the parents made for it that stayed empty; a signal in the middle doesn't stop it."""
    try:
        clear(stage, target)
    except BaseException:
        clear(stage, target)
        raise
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only when nothing came to stand in it


def _about(error: OSError, stage: Path) -> bool:
    """True when an error of the block concerns our writing, and not something else that the block did."""
    import errno

    names = [str(name) for name in (error.filename, error.filename2) if name]
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))
    return full or any(stage.name in name for name in names)


def _make_parents(target: Path, made: list[Path]) -> None:
    """Make the missing parents and put them into ``made``, innermost first."""
    missing = [folder for folder in target.parents if not folder.exists()]
    for folder in reversed(missing):
        made.insert(0, folder)
        folder.mkdir(exist_ok=True)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for name in files:
            file = Path(place, name)
            if not file.is_symlink():
                _sync_file(file)
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; Windows can't open folders and needs no such thing."""
    if os.name == "nt":
        return
    with contextlib.suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            import errno

            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
                raise
        finally:
            os.close(handle)
