"""Outputs are whole or not there: errors, signals, kills, full and read-only disks."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ending import with_us
from warm import Warm

from compresskit.checkpoint import atomic, swap
from compresskit.checkpoint.atomic import new_file, new_folder, refuse_same, write_file, writing
from compresskit.checkpoint.stale_staging import sweep_folder
from compresskit.errors import MachineError, UsageError

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX only")


def bundle(folder: Path, text: str) -> None:
    (folder / "compresskit.json").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "weights").write_text(text * 100)


def content(folder: Path) -> str:
    text = (folder / "compresskit.json").read_text()
    assert (folder / "sub" / "weights").read_text() == text * 100
    return text


def put(path: Path, text: str, *, force: bool = False) -> None:
    with new_folder(path, force=force) as staged:
        bundle(staged, text)


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(swap, "_rename", lambda *_: False)
    return str(request.param)


def test_a_file_is_written_and_nothing_else_stays(tmp_path: Path, way: str) -> None:
    target = tmp_path / "deep" / "er" / "out.bin"
    write_file(target, lambda path: path.write_bytes(b"new"), force=False)
    assert target.read_bytes() == b"new" and target.parent.iterdir().__next__() == target
    with pytest.raises(UsageError, match="exists already") as caught:
        write_file(target, lambda path: path.write_bytes(b"x"))
    assert "`force`" in caught.value.hint
    write_file(target, lambda path: path.write_bytes(b"newer"), force=True)
    assert target.read_bytes() == b"newer" and len(list(target.parent.iterdir())) == 1


def test_the_staged_name_is_the_final_one(tmp_path: Path) -> None:
    """torch.save's bytes depend on the file's name, and ONNX files name their external data."""
    with new_file(tmp_path / "out.pt") as staged:
        assert staged.name == "out.pt" and staged.parent.parent == tmp_path
        staged.touch()


def test_a_folder_is_replaced_whole(tmp_path: Path, way: str) -> None:
    target = tmp_path / "out"
    put(target, "old")
    with pytest.raises(UsageError, match="exists already"):
        put(target, "new")
    assert content(target) == "old"
    put(target, "new", force=True)
    assert content(target) == "new" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [True, False])
def test_another_that_is_first_at_the_last_moment_is_replaced_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    target, move = tmp_path / "out", swap.move_new

    def late(staged: Path, place: Path) -> None:
        if not place.exists():
            place.mkdir()
            bundle(place, "another's")
        move(staged, place)

    monkeypatch.setattr(swap, "move_new", late)
    with contextlib.nullcontext() if force else pytest.raises(UsageError, match="exists already"):
        put(target, "ours", force=force)
    assert content(target) == ("ours" if force else "another's")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path, way: str) -> None:
    (tmp_path / "out").mkdir()
    put(tmp_path / "out", "new")
    assert content(tmp_path / "out") == "new" and os.listdir(tmp_path) == ["out"]


def test_a_folder_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo").touch()
    with pytest.raises(UsageError, match="did not write"):
        put(tmp_path, "new", force=True)
    assert os.listdir(tmp_path) == ["photo"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_after_an_exception_the_old_stands_and_nothing_stays(
    tmp_path: Path, error: type[BaseException], force: bool
) -> None:
    if force:
        put(tmp_path / "out", "old")
        (tmp_path / "file").write_text("old")
    for manager in (new_folder(tmp_path / "out", force=force), new_file(tmp_path / "file", force=force)):
        with pytest.raises(error), manager as staged:
            (staged / "x" if staged.is_dir() else staged).write_text("half")
            raise error
    assert sorted(os.listdir(tmp_path)) == (["file", "out"] if force else [])
    if force:
        assert content(tmp_path / "out") == "old" and (tmp_path / "file").read_text() == "old"


def test_made_parents_go_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError), new_folder(tmp_path / "a" / "b" / "out"):
        raise ValueError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("when", ["write", "sync", "rename"])
def test_a_full_or_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, when: str) -> None:
    put(tmp_path / "out", "old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    if when == "sync":
        monkeypatch.setattr(atomic, "_sync_file", fail)
    if when == "rename":
        monkeypatch.setattr(swap, "exchange_folders", fail)
    with (
        pytest.raises(MachineError, match=r"cannot write .*out: ") as caught,
        new_folder(tmp_path / "out", force=True) as staged,
    ):
        bundle(staged, "new")
        if when == "write":
            fail()
    assert caught.value.hint and content(tmp_path / "out") == "old" and os.listdir(tmp_path) == ["out"]


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from compresskit.checkpoint.atomic import new_folder
from compresskit.checkpoint.safetensors_writer import entry, write_safetensors
from compresskit.errors import MachineError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with new_folder(sys.argv[1], force=True) as staged:
        if sys.argv[2] == "ours":
            write_safetensors(staged / "m", [entry("w", torch.ones(1 << 16))])
        else:
            from compresskit.checkpoint.atomic import writing
            with writing(staged / "m"):
                torch.save({"w": torch.ones(1 << 16)}, staged / "m")
except MachineError as error:
    print(error)
"""


@POSIX
@pytest.mark.parametrize("writer", ["ours", "torch"])
def test_a_write_that_the_system_really_refuses(warm_torch: Warm, tmp_path: Path, writer: str) -> None:
    put(tmp_path / "out", "old")
    done = warm_torch.run(("-c", LIMITED, str(tmp_path / "out"), writer))
    assert done.returncode == 0 and "cannot write" in done.stdout and done.stderr == ""
    assert content(tmp_path / "out") == "old" and os.listdir(tmp_path) == ["out"]


def test_a_failed_second_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "out", "old")
    monkeypatch.setattr(swap, "_rename", lambda *_: False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".out") and self.name == "out":
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(MachineError):
        put(tmp_path / "out", "new", force=True)
    assert content(tmp_path / "out") == "old" and os.listdir(tmp_path) == ["out"]


def test_another_error_of_the_block_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out"):
        (tmp_path / "no data").read_text()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EROFS, "x"), "read-only"),
        (
            RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"),
            "full",
        ),
        (RuntimeError("unexpected pos 64 vs 0"), "full"),
        (RuntimeError("Error: No space left on device (os error 28)"), "full"),
        (RuntimeError("I/O: Permission denied"), "permission"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_libraries_say_is_understood(error: Exception, said: str) -> None:
    with pytest.raises(MachineError, match=f"cannot write some.pt: .*{said}"), writing("some.pt"):
        raise error


def test_other_errors_pass_through_writing() -> None:
    with pytest.raises(RuntimeError, match="shapes"), writing("x"):
        raise RuntimeError("shapes don't match")


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(MachineError, match="no permission"):
            put(tmp_path / "out", "new")
    finally:
        tmp_path.chmod(0o700)


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot write"):
        put(tmp_path / "file" / "out", "new")


@POSIX
def test_devices_folders_and_links_as_outputs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a regular file"):
        write_file("/dev/null", lambda path: path.touch(), force=True)
    with pytest.raises(UsageError, match="is a folder"):
        write_file(tmp_path, lambda path: path.touch(), force=True)
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", lambda path: path.write_text("new"), force=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("other", [pytest.param("sweeps", marks=POSIX), "removes the parents"])
def test_another_run_that_ends_as_this_one_starts_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Before its lock a new staging folder looks like a dead process's; empty parents are removed by who made them."""
    target, done, make = tmp_path / "new" / "out.json", [0], Path.mkdir

    def mkdir(self: Path, *args: Any, **named: Any) -> None:
        disturbed = ".compresskit-" in self.name and done[0] < 3
        done[0] += disturbed
        if disturbed and other == "removes the parents":
            self.parent.rmdir()
        make(self, *args, **named)
        if disturbed:
            sweep_folder(self.parent)
            assert not self.exists()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    write_file(target, lambda path: path.write_bytes(b"whole"))
    assert done[0] == 3 and target.read_bytes() == b"whole"
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]


@POSIX
def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        put(tmp_path / "out", "x")
        write_file(tmp_path / "file", lambda path: path.write_text("x"))
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_refuse_same(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    model = folder / "m.pt"
    model.touch()
    for source, output in [
        (model, model),
        (folder, folder),
        (folder, folder / "out"),
        (model, folder),
        (model, tmp_path),
    ]:
        with pytest.raises(UsageError, match=r"input"):
            refuse_same(source, output)
    refuse_same(model, folder / "out")
    refuse_same(folder, tmp_path / "out")
    refuse_same(folder, tmp_path / "in2")


@POSIX
def test_refuse_same_sees_through_links(tmp_path: Path) -> None:
    model = tmp_path / "m.pt"
    model.touch()
    (tmp_path / "soft").symlink_to(model)
    (tmp_path / "hard").hardlink_to(model)
    for name in ("soft", "hard"):
        with pytest.raises(UsageError):
            refuse_same(model, tmp_path / name)


CHILD = """
import os, sys, time, signal
from pathlib import Path
from compresskit.checkpoint import atomic, swap
target, way, point = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def die(): os.kill(os.getpid(), signal.SIGKILL)
if way == "two": swap._rename = lambda *_: False
if point == "sync": atomic._sync_tree = lambda _: die()
if point == "after": atomic._sync_folder = lambda p: p == target.parent and die()
if point == "between":
    real = Path.rename
    def rename(self, to):
        real(self, to)
        if to.name == "old": die()
    Path.rename = rename
with atomic.new_folder(target, force=True) as staged:
    (staged / "compresskit.json").write_text("new")
    (staged / "sub").mkdir()
    if point == "body": die()
    if point == "wait":
        print("ready", flush=True)
        time.sleep(60)
    (staged / "sub" / "weights").write_text("new" * 100)
"""


def child(target: Path, way: str, point: str) -> subprocess.Popen[str]:
    words = [*with_us(), sys.executable, "-c", CHILD, str(target), way, point]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@POSIX
@pytest.mark.parametrize(
    ("way", "point"),
    [
        ("one", "body"),
        ("one", "sync"),
        ("one", "after"),
        ("two", "body"),
        ("two", "sync"),
        ("two", "between"),
        ("two", "after"),
    ],
)
def test_killed_at_any_point_the_old_or_the_new_is_whole(tmp_path: Path, way: str, point: str) -> None:
    target = tmp_path / "out"
    put(target, "old")
    with child(target, way, point) as process:
        assert process.wait(60) == -signal.SIGKILL
    if point == "between":
        assert not target.exists()
        with pytest.raises(RuntimeError), new_folder(target, force=True):
            raise RuntimeError  # any next run, even one that fails, recovers it first
    assert content(target) == ("new" if point in ("between", "after") else "old")
    put(target, "next", force=True)
    assert content(target) == "next" and os.listdir(tmp_path) == ["out"], "the debris is swept"


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_old_and_no_debris(tmp_path: Path, number: signal.Signals) -> None:
    target = tmp_path / "out"
    put(target, "old")
    with child(target, "one", "wait") as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        put(target, "meanwhile", force=True)
        assert len(os.listdir(tmp_path)) == 2, "a living process's folder is not swept"
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert content(target) == "meanwhile" and os.listdir(tmp_path) == ["out"]


@POSIX
@pytest.mark.slow
def test_killed_at_random_times(tmp_path: Path) -> None:
    target = tmp_path / "out"
    put(target, "new")
    loop = CHILD.replace("with atomic", "while True:\n  with atomic").replace("\n    ", "\n      ")
    for delay in range(30):
        process = subprocess.Popen([*with_us(), sys.executable, "-c", loop, str(target), "one", "none"])
        time.sleep(0.15 + delay * 0.011)
        process.kill()
        process.wait()
        assert content(target) == "new"
