"""Draws the pictures of the README from what the tool itself found: runs the tour, and records its output as SVG.

    python docs/pictures.py [FOLDER]

FOLDER is one that ``compresskit demo`` wrote; without it the tour runs first. The same code draws them that draws the
terminal (``compresskit.render``).
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from compresskit.render.inspect_view import print_inspection
from compresskit.render.terminal import print_report
from compresskit.report import read_report

TARGET = Path(__file__).resolve().parent / "pictures"
WIDTH = 92
_ARCH = ("--arch", "net.py:Net")


def console() -> Console:
    """One that records, in colour, and shows nothing."""
    return Console(
        file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor",
        markup=False, emoji=False, highlight=False, legacy_windows=False,
    )  # fmt: skip


def run(folder: Path, *words: str) -> None:
    """A command in the tour's folder.

    Raises:
        CalledProcessError: It failed.
    """
    subprocess.run([sys.executable, "-m", "compresskit", *words], cwd=folder, check=True)


def save(drawn: Console, name: str, title: str) -> None:
    """Write a picture; it refers to nothing on the network, and its bytes depend on its content alone."""
    svg = drawn.export_svg(title=title, unique_id=name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace")
    TARGET.mkdir(exist_ok=True)
    (TARGET / f"{name}.svg").write_text(svg, encoding="utf-8", newline="\n")


def verdict(folder: Path) -> None:
    """The report of the tour."""
    drawn = console()
    drawn.print(Text("$ compresskit demo", style="bold"))
    print_report(read_report(folder / "report.json"), drawn, output="compresskit-demo")
    save(drawn, "demo", "compresskit demo")


def estimates(folder: Path) -> None:
    """What inspect says of the tour's model."""
    words = ("digits.pt", *_ARCH)
    shown = ("inspect", *words, "--data", "train.npz", "--sensitivity")
    run(folder, *shown, "--json", "inspect.json", "--quiet")
    found: dict[str, Any] = json.loads((folder / "inspect.json").read_text(encoding="utf-8"))
    drawn = console()
    drawn.print(Text(" ".join(("$ compresskit", *shown)), style="bold"))
    print_inspection(found, drawn, title="digits.pt", words=words)
    save(drawn, "inspect", "compresskit inspect")


def main() -> None:
    """Draw all pictures."""
    with tempfile.TemporaryDirectory(prefix="compresskit-") as work:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(work) / "demo"
        if len(sys.argv) < 2:
            run(Path(work), "demo", "--quiet", "-o", "demo")
        verdict(folder)
        estimates(folder)


if __name__ == "__main__":
    main()
