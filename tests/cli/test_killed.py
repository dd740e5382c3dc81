"""Whenever a run is killed, the output is the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_material import SHAPE, Job, picture
from ending import with_us

from compresskit.checkpoint.bundle import read_card

if os.name == "nt":
    pytest.skip("needs POSIX signals", allow_module_level=True)

FORCED = ("quantize", "m.pt", "--bits", "8", "-o", "out", "--force")
NEW_PLACE = ("quantize", "m.pt", "--bits", "8", "-o", "out")
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def signals(*fast: signal.Signals) -> list[Any]:
    """All of them; the others run with ``-m slow``."""
    return [number if number in fast else pytest.param(number, marks=pytest.mark.slow) for number in CODES]


def visible(place: Path) -> dict[str, str]:
    return {name: what for name, what in picture(place).items() if not name.startswith(".")}


def moments(count: int, number: int) -> list[int]:
    """Every second thing that is done to the output, and all of the last ones, where the new takes its place."""
    return [at for at in range(1, count + 1) if at % 2 == number % 2 or at > count - 7]


@pytest.mark.parametrize("number", signals(signal.SIGKILL, signal.SIGINT))
def test_a_replacement_is_whole_or_not_there(job: Job, here: Path, number: signal.Signals) -> None:
    shutil.copytree("bundle", "out")
    old = picture(here)
    told = job(FORCED, here)
    new = picture(here)
    assert told["code"] == 0 and told["events"] >= 10 and old != new
    seen = set()
    for at in moments(told["events"], number):
        shutil.rmtree("out")
        shutil.copytree("bundle", "out")
        code = job(FORCED, here, at, number)["code"]
        log = (here.parent / "log").read_text()
        assert code == CODES[number], (at, code, log)
        assert "Traceback" not in log
        after = picture(here)
        if number == signal.SIGKILL:
            after = visible(here)
        assert after in (old, new), (at, sorted(set(after) ^ set(old)))
        read_card(here / "out", verify=True)
        seen.add(after == new)
        if number == signal.SIGKILL and at % 5 == 0:
            assert job(FORCED, here)["code"] == 0
            assert picture(here) == new, "the next run sweeps what a killed one left"
    assert seen == {True, False} or number != signal.SIGKILL


@pytest.mark.parametrize("number", signals(signal.SIGKILL, signal.SIGTERM))
def test_a_new_output_is_whole_or_not_there(job: Job, here: Path, number: signal.Signals) -> None:
    before = picture(here)
    told = job(NEW_PLACE, here)
    new = picture(here)
    for at in moments(told["events"], number):
        shutil.rmtree("out", ignore_errors=True)
        assert job(NEW_PLACE, here, at, number)["code"] == CODES[number]
        after = visible(here) if number == signal.SIGKILL else picture(here)
        assert after in (before, new), at
    shutil.rmtree("out", ignore_errors=True)
    assert job(NEW_PLACE, here)["code"] == 0
    assert picture(here) == new


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_exported_file_is_whole_or_not_there(job: Job, here: Path, number: signal.Signals) -> None:
    words = ("quantize", "m.pt", "--arch", "net.py:Net", *SHAPE, "--bits", "8", "--no-bench", "-o", "out", "--force")
    shutil.copytree("bundle", "out")
    old = picture(here)
    told = job(words, here)
    new = picture(here)
    assert told["code"] == 0 and new != old
    for at in (told["events"] * 2 // 3,):
        shutil.rmtree("out")
        shutil.copytree("bundle", "out")
        assert job(words, here, at, number)["code"] == CODES[number]
        after = visible(here) if number == signal.SIGKILL else picture(here)
        assert after == old or after.keys() == new.keys()
        read_card(here / "out", verify=True)


def alive(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.parametrize("number", CODES)
def test_no_worker_outlives_a_killed_bench(here: Path, number: signal.Signals) -> None:
    words = [*with_us(), sys.executable, "-m", "compresskit", "bench", "m.onnx", "bundle", "--processes", "50"]
    before = picture(here)
    scratch = here.parent / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        words, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip
    group = process.pid
    try:
        end = time.monotonic() + 60
        while not _workers(group) and time.monotonic() < end:
            time.sleep(0.02)
        assert _workers(group), "no worker was started"
        if number == signal.SIGINT:
            os.killpg(group, number)  # as a terminal does
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == CODES[number]
        assert out == "" and "Traceback" not in err and len(err.splitlines()) <= 2
        assert ("interrupted" in err) == (number == signal.SIGINT)
        end = time.monotonic() + 20
        while alive(group) and time.monotonic() < end:
            time.sleep(0.05)
        assert not alive(group)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    assert picture(here) == before
    assert number == signal.SIGKILL or picture(scratch) == {}


def _workers(group: int) -> int:
    """How many processes of the group there are besides its leader."""
    said = subprocess.run(["ps", "-eo", "pgid="], capture_output=True, text=True, check=False).stdout
    return said.split().count(str(group)) - 1
