import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from compresskit import __version__
from compresskit.benchmark import machine, memory


@pytest.fixture(autouse=True)
def fresh():
    yield
    for function in (machine.cores, machine.cpu_name, machine.cpu_flags, machine._cpuinfo):
        function.cache_clear()


def clear():
    for function in (machine.cores, machine.cpu_name, machine.cpu_flags, machine._cpuinfo):
        function.cache_clear()


def test_environment_is_json_without_names_or_paths():
    facts = machine.environment(threads=1)
    text = json.dumps(facts)
    assert facts["threads"] == 1
    assert facts["cpu"]
    assert facts["packages"]["numpy"]
    for secret in (platform.node(), str(Path.home()), str(Path.cwd())):
        if len(secret) > 3:
            assert secret not in text


def test_the_version_is_the_package_s_own_where_nothing_is_installed(monkeypatch):
    """The image for the edge holds a copy; an editable install keeps the metadata of the day it was made."""

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", absent)
    assert machine.environment()["packages"] == {"compresskit": __version__}


def test_cores_are_at_least_one_and_not_more_than_there_are():
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert machine.environment()["threads"] == machine.cores()


@pytest.mark.parametrize(
    ("flags", "vnni"),
    [
        ("fpu avx2 avx512f avx512_vnni", True),
        ("fpu avx2 avx_vnni", True),
        ("fpu avx2 avx512f", False),
        ("fp asimd asimddp i8mm", False),
        ("nothing_of_interest", False),
    ],
)
def test_vnni_is_read_off_the_flags(monkeypatch, flags, vnni):
    clear()
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"flags": flags})
    assert machine.has_vnni() is vnni


def test_where_there_is_no_cpuinfo_numpy_tells(monkeypatch):
    known = machine.cpu_flags()
    clear()
    monkeypatch.setattr(machine, "_cpuinfo", dict)
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert machine.cpu_flags() <= known
    assert machine.cpu_name()
    assert machine.environment()["os"] == "Windows"


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", None), ("150000 100000", 2), ("1000 100000", 1), ("rubbish", None)]
)
def test_a_containers_quota_counts(monkeypatch, limit, expected):
    monkeypatch.setattr(Path, "read_text", lambda self, **_: limit)
    assert machine._quota() == expected


def test_peak_memory_grows_with_use():
    code = (
        "from compresskit.benchmark.memory import peak; before = peak(); x = bytearray(80_000_000); "
        "x[:] = b'1' * len(x);"
        "print(before is None or peak() - before > 70_000_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_peak_memory_is_not_inherited_from_the_parent():
    """Linux's ru_maxrss starts at the parent's peak, which would make every model look as large as the caller."""
    ballast = bytearray(200_000_000)
    ballast[:] = b"1" * len(ballast)
    code = "from compresskit.benchmark.memory import peak; print(peak() or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000_000
    assert (memory.peak() or 2e8) >= 2e8
