"""The one table of figures: ``record`` puts a row into RESULTS.md, in the place of the row of the same case.

Each row names the machine it was measured on by a letter; the machines are listed above the table, and one that no row
names any more is dropped. Only figures that were really measured here go in: nothing is typed by hand.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from compresskit.benchmark.machine import environment

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = ("case", "bar", "value", "n", "spread", "verdict", "machine", "date")
_INTRODUCTION = """# Figures

Written by the scripts in this folder; [README.md](README.md) says how each is measured. *Met* and *missed* are of the
value; the spread says how sure it is. A row without a bar is information.
"""


def record(
    case: str,
    bar: str,
    value: str,
    n: int | str,
    spread: str = "",
    passed: bool | None = None,
    *,
    path: Path = RESULTS,
) -> None:
    """Put one row into the table.

    Args:
        case: The row's key: what was measured, under which conditions.
        bar: What it must reach; empty for a figure that is information.
        value: What was measured, with its unit.
        n: What the value was taken from: runs, samples, processes.
        spread: Interval or range.
        passed: Whether the bar was reached; None without a bar.
        path: The file; made when it isn't there.
    """
    rows, machines = _read(path)
    here = _machine(environment())
    letter = next((k for k, v in machines.items() if v == here), None) or _free(machines)
    machines[letter] = here
    verdict = "" if passed is None else "met" if passed else "missed"
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    rows[_cell(case)] = [_cell(str(v)) for v in (case, bar, value, n, spread, verdict, letter, today)]
    path.write_text(_text(rows, machines), encoding="utf-8")


def recorded(case: str, *, path: Path = RESULTS) -> str | None:
    """The value on record for a case; None where there is none."""
    row = _read(path)[0].get(_cell(case))
    return None if row is None else row[_HEAD.index("value")]


def _machine(facts: dict[str, Any]) -> str:
    """What decides the figures, in a line; no host name, no path."""
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    return (
        f"{facts['cpu']}, {facts['machine']} ({', '.join(facts['flags'])}), {facts['cores']} cores, {facts['os']}, "
        f"Python {facts['python']}; {packages}"
    )


def _free(machines: dict[str, str]) -> str:
    return next(letter for letter in map(chr, range(ord("A"), ord("Z") + 1)) if letter not in machines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _read(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The rows by case and the machines by letter; both empty where there is no file yet."""
    rows: dict[str, list[str]] = {}
    machines: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        if found := re.match(r"- \*\*([A-Z])\*\*: (.*)", line):
            machines[found[1]] = found[2]
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == len(_HEAD) and cells[0] != _HEAD[0] and set(cells[0]) != {"-"}:
            rows[cells[0]] = cells
    return rows, machines


def _text(rows: dict[str, list[str]], machines: dict[str, str]) -> str:
    used = {row[-2] for row in rows.values()}
    listed = [f"- **{letter}**: {machine}" for letter, machine in sorted(machines.items()) if letter in used]
    table = [_HEAD, ["---"] * len(_HEAD), *(rows[case] for case in sorted(rows))]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join([_INTRODUCTION, "## Machines", "", *listed, "", "## Results", "", *lines]) + "\n"
