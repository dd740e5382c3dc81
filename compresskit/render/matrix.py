"""The points of a matrix compared with each other."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from compresskit.render import figures, rows
from compresskit.render.console import make_console
from compresskit.render.markdown import escape
from compresskit.report import Report

_HEADER = ("point", "verdict", "size", "smaller", "quality", "speedup")


def print_matrix(names: Sequence[str], reports: Sequence[Report], *, markdown: bool = False) -> None:
    """Draw a line for each point.

    Args:
        names: Of the points.
        reports: One a point, in the order of the names.
        markdown: As a Markdown table, else one for the terminal.
    """
    lines = []
    for name, report in zip(names, reports, strict=True):
        row = rows.rows(report)[-1]
        cells = (figures.clean(name), rows.word(report), row.size, row.smaller, *row.quality[:1], row.speedup)
        lines.append(cells if row.quality else (*cells[:4], figures.DASH, cells[-1]))
    console = make_console()
    if markdown:
        for line in (_HEADER, ("---", "---", *("---:" for _ in _HEADER[2:])), *(tuple(map(escape, c)) for c in lines)):
            print(f"| {' | '.join(line)} |")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for index, column in enumerate(_HEADER):
        table.add_column(column, justify="left" if index < 2 else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    console.print(table)
