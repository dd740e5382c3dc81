"""Energy of the processor, by the counters that Linux shows of RAPL (Intel, and AMD since Zen)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/class/powercap")
Counters = dict[str, tuple[int, int]]
"""By package: what its counter says, and where it starts again from zero; both in µJ."""


def read(root: Path = ROOT) -> Counters:
    """The counters of all packages; empty where there are none or only root may read them."""
    found: Counters = {}
    with suppress(OSError):
        for zone in root.glob("*-rapl:*"):
            if zone.name.count(":") != 1:  # cores and memory are parts of a package, or of another kind
                continue
            with suppress(OSError, ValueError):
                if (zone / "name").read_text(encoding="ascii").strip() == "psys":  # the whole board, packages included
                    continue
                top = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
                found[zone.name] = (int((zone / "energy_uj").read_text(encoding="ascii")), top)
    return found


def joules(before: Counters, after: Counters) -> float | None:
    """What all packages took in between, whoever computed; None where it isn't known."""
    if not before or before.keys() != after.keys():
        return None
    spent = 0
    for name, (value, top) in after.items():
        used = value - before[name][0]
        spent += used if used >= 0 else used + top
    return spent / 1e6
