"""Where two models part, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compresskit.render import figures
from compresskit.render.console import make_console

_BAR, _DECADES = 20, 6


def print_layers(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Draw a comparison layer by layer.

    Args:
        found: As :func:`compresskit.runner.layerwise.compare_layers` gives it.
        console: Where to draw; standard output by default.
    """
    console = make_console() if console is None else console
    one, two = map(figures.clean, found["models"])
    on = f"{found['samples']} samples of {figures.clean(found['data'])}" if found["data"] else "random inputs"
    console.print(Text(f"{two} against {one}, on {on}", style="bold"), overflow="fold")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title in ("layer", "type", "relative error", "", ""):
        table.add_column(title, justify="right" if title == "relative error" else "left", overflow="fold")
    for row in found["layers"]:
        kinds = row["type"] if row["type"] == row["other"] else f"{row['type']} / {row['other']}"
        cells = (row["name"], kinds, f"{row['error']:.2g}", _bar(row["error"]), "← jump" if row["jump"] else "")
        table.add_row(*(Text(figures.clean(cell)) for cell in cells))
    output = found["output"]
    table.add_row(
        "(output)", "", figures.DASH if output is None else f"{output:.2g}", "" if output is None else _bar(output), ""
    )
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    for line in told(found):
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False), overflow="fold")


def told(found: Mapping[str, Any]) -> list[str]:
    """What the table comes to, in sentences."""
    first = found["first"]
    lines = [f"the models part at {figures.clean(first)}" if first else "no layer's error jumps"]
    names = (
        ("one", f"only in {found['models'][0]}"),
        ("two", f"only in {found['models'][1]}"),
        ("shapes", "of another shape"),
    )
    for key, what in names:
        if names_ := found[key]:
            shown = ", ".join(map(figures.clean, names_[:4])) + (" …" if len(names_) > 4 else "")
            lines.append(f"not compared, {figures.clean(what)}: {len(names_)} layers ({shown})")
    return lines


def _bar(error: float) -> str:
    """Its order of magnitude: a bar of full length is 1."""
    import math

    share = 1 + math.log10(max(error, 1e-12)) / _DECADES
    return "█" * round(_BAR * min(1.0, max(0.0, share)))
