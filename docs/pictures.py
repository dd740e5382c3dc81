"""Records the pictures of the documents: runs the commands in the demo's folder, and draws their output as SVG.

    python docs/pictures.py [FOLDER]

FOLDER is one that ``compresskit demo`` wrote; without it the demo runs first. The code is that of the terminal
(``compresskit.render``). A picture plays back: its lines appear one after the other.
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
_PAUSE, _PACE = 0.8, 0.08
"""Seconds until the first line of output appears, and between two lines."""


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
    svg = svg.replace("</style>", f"{_played(svg)}</style>", 1)
    TARGET.mkdir(exist_ok=True)
    (TARGET / f"{name}.svg").write_text(svg, encoding="utf-8", newline="\n")


def _played(svg: str) -> str:
    """Rules that let each line appear after those above it; a viewer without animations shows all of them."""
    last = max(map(int, re.findall(r"line-(\d+)\)", svg)))
    rules = "".join(
        f"text[clip-path$='line-{line})']{{animation:appear 1ms {_PAUSE + _PACE * line:.2f}s backwards}}"
        for line in range(1, last + 1)
    )
    return f"@keyframes appear{{from{{opacity:0}}}}@media (prefers-reduced-motion:no-preference){{{rules}}}"


def search(folder: Path) -> None:
    """What compress found in the demo."""
    words = ("compress", "digits.pt", *_ARCH, "--data", "train.npz", "--eval-data", "test.npz")
    drawn = console()
    drawn.print(Text(" ".join(("$ compresskit", *words, "--max-drop 1pt --time 40s -o best")), style="bold"))
    print_report(read_report(folder / "best" / "report.json"), drawn, output="best")
    save(drawn, "compress", "compresskit compress")


def estimates(folder: Path) -> None:
    """What inspect says of the demo's model."""
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
        search(folder)
        estimates(folder)


if __name__ == "__main__":
    main()
