"""The command line in this process, and small files to run it on."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from cli_counted import ARGUMENTS
from cli_material import Cli, Job, Outcome, hostile_files, material_files, picture
from warm import Warm

ONE = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _quick(forked_workers: None) -> None:
    """Commands in this process fork the workers of their bench; those of real ones are in tests/bench."""


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good models, architectures and data; never written to."""
    folder = tmp_path_factory.mktemp("material")
    material_files(folder)
    return folder


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory, material: Path) -> Path:
    """A folder of damaged and hostile models; never written to."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile_files(folder, material)
    return folder


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs ``compresskit ARGUMENTS`` as the installed program would, in this process and in the current folder."""

    def run(*arguments: object) -> Outcome:
        from compresskit.cli.main import main

        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["compresskit", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        assert isinstance(left.value.code, int)
        return Outcome(left.value.code, out, err)

    return run


@pytest.fixture
def here(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a copy of the good files: net.py, m.pt, m.safetensors, m.onnx, d.npz, bundle."""
    folder = tmp_path / "here"
    shutil.copytree(material, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def untouched(here: Path) -> object:
    """Fails the test when anything in the current folder was added, removed or changed."""
    before = picture(here)
    yield before
    assert picture(here) == before


@pytest.fixture
def job(warm_torch: Warm) -> Job:
    """Runs a command in the current folder of the caller, killed at one of its moments."""

    def run(argv: tuple[str, ...], place: Path, at: int = 0, number: int = 0) -> dict[str, int]:
        note, log = place.parent / "events", place.parent / "log"
        words = (*ARGUMENTS, str(note), str(at), str(int(number)), *argv)
        with log.open("wb") as file:
            code = warm_torch.start(words, cwd=place, stdout=file, stderr=file, env={**os.environ, **ONE}).wait(240)
        return {"code": code, "events": int(note.read_bytes() or 0)}

    return run
