"""What the machine did besides: read off counters in a folder that looks like Linux's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compresskit.benchmark import energy, noise
from compresskit.benchmark.noise import Snapshot

QUIET = Snapshot(when=100.0, busy=50.0, own=10.0, stolen=1.0, hot=3, held=2)


def later(**changes) -> Snapshot:
    same = {"when": 110.0, "busy": 60.0, "own": 20.0, "stolen": 1.0, "hot": 3, "held": 2}
    return Snapshot(**{**same, **changes})


def test_a_quiet_machine_has_no_notes(tmp_path: Path) -> None:
    assert noise.notes(QUIET, later(), root=tmp_path, load=0.0) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"busy": 60.0 + 10 * (os.cpu_count() or 1)}, "other programs used"),
        ({"stolen": 1.0 + 10 * (os.cpu_count() or 1)}, "to other machines"),
        ({"hot": 5}, "2 times because of heat"),
        ({"held": 9}, "quota stopped this program 7 times"),
    ],
)
def test_each_disturbance_is_told(tmp_path: Path, changes: dict, said: str) -> None:
    (found,) = noise.notes(QUIET, later(**changes), root=tmp_path)
    assert said in found and found.startswith("noise: ")


def test_load_and_governor_are_told(tmp_path: Path) -> None:
    governor = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("powersave\n")
    first, second = noise.notes(QUIET, later(), root=tmp_path, load=1000.0)
    assert "load average was 1000.0" in first and "'powersave'" in second
    governor.write_text("performance\n")
    assert noise.notes(QUIET, later(), root=tmp_path) == []


def test_counters_are_read_where_linux_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  100 0 100 9 9 0 0 50 0 0\ncpu0 1 2 3\n")
    heat = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    heat.parent.mkdir(parents=True)
    heat.write_text("4\n")
    quota = tmp_path / "sys/fs/cgroup/cpu.stat"
    quota.parent.mkdir(parents=True)
    quota.write_text("usage_usec 1\nnr_throttled 6\n")
    found = noise.snapshot(tmp_path)
    tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    assert (found.busy, found.stolen, found.hot, found.held) == (200 / tick, 50 / tick, 4, 6)


def test_what_a_system_does_not_tell_is_not_said(tmp_path: Path) -> None:
    nothing = noise.snapshot(tmp_path)
    assert (nothing.busy, nothing.stolen, nothing.hot, nothing.held) == (None,) * 4
    assert noise.notes(nothing, noise.snapshot(tmp_path), root=tmp_path) == []


def package(root: Path, name: str, now: int, top: int = 1000, called: str = "package-0") -> None:
    (root / name).mkdir(exist_ok=True)
    (root / name / "name").write_text(f"{called}\n")
    (root / name / "energy_uj").write_text(f"{now}\n")
    (root / name / "max_energy_range_uj").write_text(f"{top}\n")


def test_energy_is_that_of_all_packages_across_a_wrap(tmp_path: Path) -> None:
    for name, now in (("intel-rapl:0", 900), ("intel-rapl:1", 100), ("intel-rapl:0:0", 5)):
        package(tmp_path, name, now)
    package(tmp_path, "intel-rapl:2", 7, called="psys")  # the board, with the packages in it
    before = energy.read(tmp_path)
    assert set(before) == {"intel-rapl:0", "intel-rapl:1"}
    package(tmp_path, "intel-rapl:0", 100)
    package(tmp_path, "intel-rapl:1", 400)
    assert energy.joules(before, energy.read(tmp_path)) == pytest.approx((200 + 300) / 1e6)


def test_energy_without_counters_is_unknown(tmp_path: Path) -> None:
    assert energy.read(tmp_path) == {} and energy.joules({}, {}) is None
