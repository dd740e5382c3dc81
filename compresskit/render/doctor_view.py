"""What ``doctor`` found, on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compresskit.render import figures
from compresskit.render.console import make_console


def print_doctor(found: dict[str, Any], console: Console | None = None) -> None:
    """Draw what is installed and what is missing.

    Args:
        found: ``environment``, ``runtimes``, ``packages`` and ``extras`` (name to None or to what is missing),
            ``methods``.
        console: Where to draw; standard output by default.
    """
    console = make_console() if console is None else console
    table = Table(box=None, show_header=False, pad_edge=False)
    for title in ("runtimes", "packages", "extras"):
        for name, lack in found[title].items():
            if title == "packages" and not lack:
                continue
            state = Text("missing", style="red") if lack else Text("ok", style="green")
            table.add_row(Text(title.removesuffix("s")), Text(name), state, Text(figures.clean(lack or "")))
    for name, value in found["environment"].items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        if isinstance(shown, (list, tuple)):
            shown = ", ".join(map(str, shown))
        table.add_row(Text("machine"), Text(str(name)), Text(""), Text(figures.clean(shown)))
    table.add_row(Text("methods"), Text(""), Text(""), Text(", ".join(found["methods"])))
    console.print(table)
