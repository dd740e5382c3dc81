"""A search that is kept in a PostgreSQL: three workers, one of which dies in a candidate."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_compress_command import ASKED, DIES, SPACE
from warm import Warm

from compresskit.report import read_report

pytestmark = pytest.mark.slow


def server(name: str) -> str:
    """One of the server's programs, which Debian keeps out of PATH."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return found


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a database of its own; the server refuses to run as root."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    as_user = ["runuser", "-u", "postgres", "--"] if os.name == "posix" and os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as place, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        if as_user:
            shutil.chown(place, "postgres")
        data = f"{place}/data"
        subprocess.run(
            [*as_user, server("initdb"), "-D", data, "-U", "search", "-A", "trust"], check=True, capture_output=True
        )
        options = f"-p {port} -k {place} -c fsync=off"
        control = [*as_user, server("pg_ctl"), "-D", data, "-w"]
        subprocess.run([*control, "-l", f"{place}/log", "-o", options, "start"], check=True, capture_output=True)
        try:
            yield f"postgresql://search:secret@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True)


def test_three_workers_on_one_database(here: Path, address: str, warm_torch: Warm) -> None:
    (here / "space.yaml").write_text(SPACE, encoding="utf-8")
    words = (*ASKED, "--study", address, "--time", "90s")
    assert warm_torch.run(("-c", DIES, *words), cwd=here).returncode == 9
    joining = ("-m", "compresskit", "compress", "--join", address, "--cache", "steps")
    with (here / "log").open("w") as log:
        joined = [warm_torch.start(joining, cwd=here, stderr=log) for _ in range(2)]
        assert [one.wait(120) for one in joined] == [0, 0], (here / "log").read_text(encoding="utf-8")
    last = warm_torch.run(("-m", "compresskit", *words), cwd=here)
    assert last.returncode == 0, last.stderr
    assert "secret" not in last.stderr + (here / "out" / "report.json").read_text(encoding="utf-8")
    search = read_report(here / "out").search
    assert search is not None
    recipes = [repr(sorted(one.values.items())) for one in search.tried]
    assert len(recipes) == len(set(recipes)) >= 5
    cut = {"factorize.svd": "none", "quantize": "quantize.rtn", "quantize.rtn.bits": 8}
    assert 2 not in [one.number for one in search.tried] and cut in [one.values for one in search.tried]
