"""Nothing that the tests start outlives them, also where they are killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from ending import with_us

STARTS = """
import subprocess, sys
subprocess.Popen(sys.argv[1:])
sys.stdin.read()
"""


@pytest.mark.skipif(not with_us(), reason="needs Linux and setpriv")
def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    words = [sys.executable, "-c", STARTS, *with_us(), sys.executable, "-c", waits]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.is_dir()
        parent.kill()
    end = time.monotonic() + 20
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(process: Path) -> bool:
    """False also for a zombie, which waits only for its new parent to ask."""
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
