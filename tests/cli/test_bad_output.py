"""Outputs that can't be written or would hurt an input: nothing is left, nothing is changed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_material import ARCH, SHAPE, Cli, picture

BARE = ("quantize", "m.pt", "--bits", "4", "-o")
WHOLE = ("quantize", "m.pt", *ARCH, *SHAPE, "--bits", "4", "--no-bench", "-o")
EXPORT = ("export", "m.pt", *ARCH, *SHAPE, "-o")
WRITERS = {"bare": (BARE, "out"), "whole": (WHOLE, "out"), "export": (EXPORT, "out.onnx")}

HARMFUL = {
    "the input": (BARE, "m.pt"),
    "the input, forced": ((*BARE[:4], "--force", "-o"), "m.pt"),
    "the input by another name": (BARE, "./../here/m.pt"),
    "a link to the input": (BARE, "link.pt"),
    "a hard link to the input": (BARE, "hard.pt"),
    "below the input": (("quantize", "bundle", *ARCH, "--bits", "4", "-o"), "bundle/again"),
    "the input bundle": (("quantize", "bundle", *ARCH, "--bits", "4", "--force", "-o"), "bundle"),
    "the folder of the input": ((*BARE[:4], "--force", "-o"), "."),
    "the parent of the input": ((*BARE[:4], "--force", "-o"), ".."),
    "a bundle with the input in it": (("quantize", "bundle/w.pt", "--bits", "4", "--force", "-o"), "bundle"),
    "a bundle with the data in it": ((*WHOLE[:-1], "--eval-data", "bundle/d.npz", "--force", "-o"), "bundle"),
    "a bundle with the calibration in it": ((*WHOLE[:-1], "--data", "bundle/d.npz", "--force", "-o"), "bundle"),
    "a bundle with the architecture in it": (
        ("quantize", "m.pt", "--arch", "bundle/net.py:Net", *SHAPE, "--bits", "4", "--force", "-o"), "bundle"),
    "the exported input": (("export", "m.onnx", "--force", "-o"), "m.onnx"),
    "into the exported bundle": (("export", "bundle", *ARCH, "--force", "-o"), "bundle/model.onnx"),
    "a folder of the user's": ((*BARE[:4], "--force", "-o"), "mine"),
    "a file": ((*BARE[:4], "--force", "-o"), "d.npz"),
    "a file for the exported file": ((*EXPORT[:-1], "--force", "-o"), "mine.onnx"),
}  # fmt: skip


@pytest.fixture
def crowded(here: Path) -> dict[str, str]:
    """The current folder with links, and folders that hold what mustn't be lost; gives its picture."""
    os.symlink("m.pt", "link.pt")
    os.link("m.pt", "hard.pt")
    for name in ("mine", "mine.onnx"):
        Path(name).mkdir()
        Path(name, "precious.txt").write_text("years of work")
    shutil.copyfile("m.pt", "bundle/w.pt")
    shutil.copyfile("d.npz", "bundle/d.npz")
    shutil.copyfile("net.py", "bundle/net.py")
    card = Path("bundle/compresskit.json")
    card.write_text(card.read_text().replace('"files": {', f'"files": {{"w.pt": {record(Path("m.pt"))},'))
    return picture(here)


def record(path: Path) -> str:
    import hashlib
    import json

    return json.dumps({"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("case", HARMFUL)
def test_an_output_that_would_hurt_is_refused(cli: Cli, crowded: dict[str, str], case: str) -> None:
    arguments, output = HARMFUL[case]
    cli(*arguments, output).refused(2, Path(output).name)
    assert picture(Path()) == crowded


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("target", ["m.pt", "net.py", "d.npz", "./../here/m.pt"])
@pytest.mark.parametrize("words", [
    ("quantize", "m.pt", *ARCH, *SHAPE, "--bits", "4", "--eval-data", "d.npz", "-o", "out"),
    ("evaluate", "m.pt", *ARCH, *SHAPE, "--data", "d.npz"),
    ("compare", "bundle", "m.pt", *ARCH, "--data", "d.npz"),
], ids=lambda words: words[0])  # fmt: skip
def test_json_never_replaces_an_input(cli: Cli, words: tuple[str, ...], target: str) -> None:
    cli(*words, "--json", target).refused(2, "--json")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("words", [
    ("inspect", "bundle", "--json", "bundle/compresskit.json"),
    ("inspect", "m.pt", "--json", "m.pt"),
    ("bench", "bundle", "--json", "bundle/model.onnx"),
    ("bench", "m.onnx", "--json", "m.onnx"),
    (*BARE[:4], "-o", "bundle", "--force", "--json", "bundle/report.json"),
    (*EXPORT, "x.onnx", "--json", "x.onnx"),
], ids=lambda words: f"{words[0]} {words[-1]}")  # fmt: skip
def test_json_never_goes_into_a_model(cli: Cli, words: tuple[str, ...]) -> None:
    cli(*words).refused(2, "--json")


IMPOSSIBLE = {"below a file": "d.npz/out", "too long": "x" * 300}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", IMPOSSIBLE)
@pytest.mark.parametrize("writer", WRITERS)
def test_an_impossible_place_is_the_machines_fault(cli: Cli, writer: str, case: str) -> None:
    arguments, name = WRITERS[writer]
    cli(*arguments, IMPOSSIBLE[case] + Path(name).suffix).refused(4, "cannot write")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("call", "writer", "code"), [
    *(("mkdir", writer, code) for writer in WRITERS for code in (errno.EROFS, errno.EACCES, errno.ENOSPC)),
    *(("fsync", "bare", code) for code in (errno.EROFS, errno.EIO, errno.ENOSPC)),
    ("fsync", "whole", errno.ENOSPC), ("fsync", "export", errno.ENOSPC),
])  # fmt: skip
def test_a_refused_call_leaves_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, writer: str, call: str, code: int
) -> None:
    real = getattr(os, call)

    def refuse(*arguments: object, **more: object) -> object:
        # Folders for temporary files elsewhere are no part of this.
        if call == "mkdir" and not str(arguments[0]).startswith((str(Path.cwd()), ".out")):
            return real(*arguments, **more)
        raise OSError(code, os.strerror(code), str(arguments[0]) if call == "mkdir" else None)

    arguments, name = WRITERS[writer]
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        found = cli(*arguments, name)
    found.refused(4, "cannot write", name)


_CLONE_NEWNS = 0x00020000  # of unshare(2); Python has it from 3.12 on


@pytest.fixture(scope="session")
def mounts() -> None:
    """A mount namespace of this process's own: what tests mount ends with it, however it ends."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("to mount a disk takes root on Linux")
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        pytest.skip(f"no mount namespace here: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rslave", "/"], check=True)  # nothing mounted here is seen outside


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path, mounts: None) -> Iterator[Path]:
    """A memory disk with the mount options of the parameter, which no other process sees."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(place)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


@pytest.mark.skipif(not getattr(os, "getppid", int)(), reason="there is no other process to ask")
@pytest.mark.parametrize("disk", ["size=4k"], indirect=True)
def test_a_disk_of_the_tests_is_seen_by_no_other_process(disk: Path) -> None:
    """One that an interrupted run left behind would keep every later run from clearing pytest's folder."""
    own, others = (Path(f"/proc/{who}/mounts").read_text() for who in ("thread-self", os.getppid()))
    assert str(disk) in own and str(disk) not in others


FULL = [*(f"size={4 * n}k" for n in range(1, 5)), *(f"nr_inodes={n}" for n in range(2, 8))]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("disk", FULL, indirect=True)
def test_a_full_disk_leaves_nothing(cli: Cli, disk: Path) -> None:
    """The sizes end the run at the weights, the export, the report and the card; the inodes at each new file."""
    cli(*WHOLE, disk / "out").refused(4, "cannot write", "the disk is full")
    assert picture(disk) == {}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("disk", ["size=4k", "nr_inodes=2", "nr_inodes=3"], indirect=True)
@pytest.mark.parametrize("writer", ["bare", "export"])
def test_a_full_disk_for_each_writer(cli: Cli, disk: Path, writer: str) -> None:
    arguments, name = WRITERS[writer]
    cli(*arguments, disk / name).refused(4, "cannot write", "the disk is full")
    assert picture(disk) == {}


@pytest.mark.parametrize("disk", ["size=64k"], indirect=True)
def test_a_full_disk_keeps_the_old_output(cli: Cli, here: Path, disk: Path) -> None:
    assert cli(*BARE, disk / "out").code == 0
    (disk / "filler").write_bytes(
        bytes(64 * 1024 - sum(-(-p.stat().st_size // 4096) * 4096 for p in disk.rglob("*.*")))
    )
    before = picture(disk)
    cli(*BARE, disk / "out", "--force").refused(4, "cannot write", "the disk is full")
    assert picture(disk) == before


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("disk", ["size=64k,ro"], indirect=True)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_read_only_disk(cli: Cli, disk: Path, writer: str) -> None:
    arguments, name = WRITERS[writer]
    cli(*arguments, disk / name).refused(4, "cannot write", "read-only")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("disk", ["size=4k", "nr_inodes=1", "nr_inodes=2"], indirect=True)
@pytest.mark.parametrize("words", [
    ("evaluate", "m.pt", *ARCH, "--data", "d.npz"),
    ("bench", "m.pt", *ARCH, *SHAPE),
], ids=lambda words: words[0])  # fmt: skip
def test_a_full_folder_for_temporary_files(
    cli: Cli, disk: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(disk))
        found = cli(*words)
    found.refused(4)
    assert picture(disk) == {}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("disk", ["size=4k", "nr_inodes=3"], indirect=True)
def test_a_full_disk_for_the_json(cli: Cli, disk: Path) -> None:
    for name in ("ballast", "more"):
        (disk / name).touch()
    with contextlib.suppress(OSError):
        (disk / "ballast").write_bytes(bytes(4096))
    before = picture(disk)
    cli("inspect", "m.pt", "--json", disk / "i.json").refused(4, "cannot write", "the disk is full")
    assert picture(disk) == before
