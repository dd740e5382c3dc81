"""What a repeated run came to, as text."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from compresskit.render import figures
from compresskit.render.console import make_console
from compresskit.runner.verify import Verified


def print_verified(folder: Path, found: Verified) -> None:
    """Draw it."""
    console = make_console()
    word = Text("REPRODUCED", style="bold green") if found.same else Text("DIFFERS", style="bold red")
    console.print(Text.assemble(word, f"  {figures.clean(folder)}: {len(found.files)} files"))
    for name, state in found.files.items():
        console.print(Text(f"  {state:<8} {figures.clean(name)}"))
    for line in found.differences:
        console.print(Text(f"  changed: {figures.clean(line)}"), overflow="fold")
    if not found.same and not found.differences:
        console.print(Text("  machine, versions and code are unchanged: some operation is not deterministic"))
