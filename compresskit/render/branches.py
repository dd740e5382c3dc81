"""Long names of layers in narrow tables: what neighbours have in common is said once, above them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

_INDENT = "  "


def branches(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each name as (heading, cell): layers of one block share a heading, which only the first of them gives.

    Args:
        names: Of layers, in the order of the table.

    Returns:
        A pair a name; the heading is empty where there is none, and then the cell is the whole name unless it stands
        below the heading of an earlier one.
    """
    found: list[tuple[str, str]] = []
    for branch, members in groupby(names, key=_branch):
        mates = list(members)
        if not branch or len(mates) < 2:
            found += [("", name) for name in mates]
            continue
        cells = [_INDENT + name.removeprefix(f"{branch}.") for name in mates]
        found += [(branch, cells[0]), *(("", cell) for cell in cells[1:])]
    return found


def _branch(name: str) -> str:
    """All up to the last number of a dotted name, or its first part; empty where nothing is left behind it."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts[:-1], 1) if part.isdigit()]
    return ".".join(parts[: numbers[-1] if numbers else 1]) if len(parts) > 1 else ""
