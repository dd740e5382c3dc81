"""A search in a database: three workers, one of which dies in a candidate. Workers on a Ray cluster."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of a database of its own; the server refuses to run as root."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    as_user = ["runuser", "-u", "postgres", "--"] if os.name == "posix" and os.geteuid() == 0 else []
    port = free_port()
    with tempfile.TemporaryDirectory() as place:
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


@contextmanager
def redis() -> Iterator[str]:
    """The address of a Redis of its own."""
    client = pytest.importorskip("redis", reason="redis is not installed: pip install redis")
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed: apt-get install redis-server")
    port = free_port()
    words = ["redis-server", "--port", str(port), "--save", "", "--requirepass", "secret"]
    with (
        tempfile.TemporaryDirectory() as place,
        subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL) as server,
    ):
        try:
            address = f"redis://:secret@127.0.0.1:{port}"
            end = time.monotonic() + 20
            with client.Redis.from_url(address) as asked:
                while time.monotonic() < end:
                    with suppress(client.ConnectionError):
                        asked.ping()
                        break
                    time.sleep(0.05)
            yield address
        finally:
            server.terminate()


@pytest.mark.parametrize("database", [postgresql, redis])
def test_three_workers_on_one_database(
    here: Path, database: Callable[[], AbstractContextManager[str]], warm_torch: Warm
) -> None:
    with database() as address:
        three_workers(here, address, warm_torch)


def three_workers(here: Path, address: str, warm_torch: Warm) -> None:
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


def test_workers_on_a_ray_cluster(here: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'compresskit[ray]'")
    many = SPACE.replace("[6, 8]", str(list(range(1, 15)))).replace("[4, 8]", "[2, 3, 4, 8]")
    (here / "space.yaml").write_text(many, encoding="utf-8")  # it is still going on when the worker has started
    words = ("-m", "compresskit", *ASKED, "--time", "120s", "--on", "ray", "--num-workers", "1")
    address = f"127.0.0.1:{free_port()}"
    env = {**os.environ, "RAY_ADDRESS": address, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    alone = subprocess.run([sys.executable, *words], cwd=here, env=env, capture_output=True, text=True)
    assert alone.returncode == 4 and "no Ray cluster answers" in alone.stderr, alone.stderr
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head = ["start", "--head", "--num-cpus=1", f"--port={address.partition(':')[2]}", "--include-dashboard=false"]
    env.pop("RAY_ADDRESS")
    subprocess.run([*ray, *head], check=True, capture_output=True, env=env)
    try:
        env["RAY_ADDRESS"] = address
        done = subprocess.run([sys.executable, *words], cwd=here, env=env, capture_output=True, text=True)
    finally:
        subprocess.run([*ray, "stop"], check=False, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "1 worker on 1 node of Ray" in done.stderr and "Ray failed" not in done.stderr, done.stderr
    search = read_report(here / "out").search
    assert search is not None
    told = {int(n) for n in re.findall(r"candidate (\d+): ", done.stderr)}
    # Those that this process didn't try, the worker did.
    assert {one.number for one in search.tried} - told, done.stderr
