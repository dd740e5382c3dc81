"""What an adapter holds, on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compresskit.render import figures
from compresskit.render.console import make_console


def print_adapter(found: dict[str, Any], console: Console | None = None, *, title: str = "") -> None:
    """Draw an adapter: a line of totals, its base, then its layers.

    Args:
        found: From :func:`compresskit.ops.lora.folder.about`.
        console: Where to draw; standard output by default.
        title: The folder, as typed.
    """
    console = make_console() if console is None else console
    if title:
        console.print(Text(figures.clean(title), style="bold"), overflow="fold")
    layers = found["layers"]
    totals = f"{figures.clean(found['kind'])}, {found['parameters']:,} numbers"
    console.print(Text(f"  {totals}" + (f" in {len(layers)} layers" if layers else "")), overflow="fold")
    base = found["base_sha256"]
    console.print(Text(f"  base: {base if base else 'the hash of its weights is not recorded'}"), overflow="fold")
    if layers:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
        for name in ("layer", "rank", "scale", "numbers"):
            table.add_column(name, justify="left" if name == "layer" else "right", overflow="fold")
        for name, layer in layers.items():
            scale = "" if layer["scale"] is None else f"{layer['scale']:g}"
            table.add_row(figures.clean(name), str(layer["rank"] or ""), scale, f"{layer['parameters']:,}")
        console.print()
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
