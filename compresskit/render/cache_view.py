"""The step cache as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from compresskit.render import figures
from compresskit.render.console import make_console
from compresskit.runner.cache import Entry


def print_cache(root: Path, entries: Sequence[Entry]) -> None:
    """Draw the entries of a cache."""
    console = make_console()
    console.print(Text(f"{figures.clean(root)}: {len(entries)} steps, {figures.size(sum(e.bytes for e in entries))}"))
    if not entries:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title, right in (("step", False), ("size", True), ("last used", False), ("key", False)):
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        names = ", ".join(map(figures.clean, entry.about.get("stages", [])))
        table.add_row(Text(names), figures.size(entry.bytes), used, Text(entry.path.name[:12]))
    console.print(table)
