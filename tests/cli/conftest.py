"""The command line in this process, and small files to run it on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_material import Cli, Job, Outcome, hostile_files, material_files, picture


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


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    """Runs a command in the current folder of the caller, killed at one of its moments."""
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("cli_fork_server.py"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def run(argv: tuple[str, ...], place: Path, at: int = 0, number: int = 0) -> dict[str, int]:
        assert server.stdin and server.stdout
        job = {"argv": argv, "at": at, "signal": number, "log": str(place.parent / "log"), "place": str(place)}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    assert server.stdin and server.stdout
    server.stdin.close()
    server.wait(timeout=30)
    server.stdout.close()
