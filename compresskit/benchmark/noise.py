"""What else the machine did while models were timed, in words: the reader should know before trusting a figure.

Linux tells most of it, other systems little; what isn't known isn't said.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compresskit.benchmark import machine

_NEIGHBOURS = 0.1  # cores of others, as a share of the machine's, from which on it is told
_LOAD = 1.3  # runnable processes for each core


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment; None where the system doesn't tell.

    Attributes:
        when: Monotonic, seconds.
        busy: CPU seconds of all processes of the machine.
        own: CPU seconds of this process and of its children that have ended.
        stolen: CPU seconds that the host of a virtual machine gave to others.
        hot: How often the processor slowed down for heat.
        held: How often a container's quota stopped this process.
    """

    when: float
    busy: float | None
    own: float
    stolen: float | None
    hot: int | None
    held: int | None


def snapshot(root: Path = Path("/")) -> Snapshot:
    """The counters as they are now; ``root`` is where ``proc`` and ``sys`` are."""
    busy, stolen = _processor(root)
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return Snapshot(time.monotonic(), busy, own, stolen, _throttled(root), _held(root))


def notes(before: Snapshot, after: Snapshot, root: Path = Path("/"), load: float | None = None) -> list[str]:
    """What a reader must know of the time between two snapshots.

    Args:
        before: Taken first.
        after: Taken when all of this program's worker processes had ended.
        root: Where ``proc`` and ``sys`` are.
        load: Runnable processes before anything was timed; None where it isn't known.
    """
    found: list[str] = []
    cpus = os.cpu_count() or 1
    elapsed = max(after.when - before.when, 1e-9)
    others = (_grown(before.busy, after.busy) - (after.own - before.own)) / elapsed
    stolen = _grown(before.stolen, after.stolen) / elapsed
    if others > _NEIGHBOURS * cpus:
        found.append(f"other programs used {others:.1f} of {cpus} cores during the timing")
    if stolen > _NEIGHBOURS * cpus / 2:
        found.append(f"the host gave {stolen:.1f} of {cpus} cores to other machines while models were timed")
    if load is not None and load > _LOAD * machine.cores():
        found.append(f"the load average was {load:.1f} on {machine.cores()} cores when the bench began")
    if (hot := _grown(before.hot, after.hot)) > 0:
        found.append(f"the processor throttled {hot} times because of heat: let it cool and measure again")
    if (held := _grown(before.held, after.held)) > 0:
        found.append(f"the container's CPU quota stopped this program {held} times: use fewer `threads`")
    if (governor := _governor(root)) not in ("performance", ""):
        found.append(f"the CPU frequency governor is '{governor[:40]}': 'performance' gives steadier figures")
    return [f"noise: {text}" for text in found]


def _grown(before: float | None, after: float | None) -> float:
    """How much a counter went up; 0 where the system doesn't tell."""
    return 0 if before is None or after is None else after - before


def _governor(root: Path) -> str:
    """How the CPU's frequency is chosen; empty where the system doesn't tell."""
    with suppress(OSError):
        return (root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    return ""


def load_average() -> float | None:
    """Processes that wanted to run in the last minute; None where the system doesn't tell."""
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return None


def _processor(root: Path) -> tuple[float | None, float | None]:
    """(busy, stolen) CPU seconds of the whole machine since it started."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        first = (root / "proc/stat").read_text(encoding="ascii").splitlines()[0].split()
        user, nice, system, _idle, _iowait, irq, soft, steal = (int(part) for part in first[1:9])
        tick = os.sysconf("SC_CLK_TCK")
        if user + system == 0:  # a sandbox that shows the file and fills it with zeros
            return None, None
        return (user + nice + system + irq + soft) / tick, steal / tick
    return None, None


def _throttled(root: Path) -> int | None:
    counts = []
    for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"):
        with suppress(OSError, ValueError):
            counts.append(int(path.read_text(encoding="ascii")))
    return sum(counts) if counts else None


def _held(root: Path) -> int | None:
    with suppress(OSError, ValueError):
        for line in (root / "sys/fs/cgroup/cpu.stat").read_text(encoding="ascii").splitlines():
            if line.startswith("nr_throttled "):
                return int(line.split()[1])
    return None
