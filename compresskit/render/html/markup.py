"""Pieces of HTML. All text that comes from a report goes through :func:`text` or :func:`words`."""

from __future__ import annotations

import html
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from compresskit.render import figures
from compresskit.render.html.chart import Chart

_SAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_MEASURED = re.compile(r"(?<=\d) (?=(?:%|×|°|[kMGT]?B|[num]?s|dB|pt|bit|min|h|MACs?)(?![\w%]))")
"""The space between a number and its unit."""
_NUMBER = re.compile(
    r"(–|[<+−-]?[\d.,]{1,17}([ \u00a0]?(%|×|[kMGTmnu]?|[kMGT]?B|m?s|dB|pt))?"
    r"( smaller| bigger| \([^()]*\)| to [\d.,]{1,17}[ \u00a0]?(×|m?s)?)?( \[[^\]]*\])?)?"
)
"""A cell of a column of numbers."""


_WIDEST = 28
"""Letters that a column of text has room for at least, where it has so many."""


class Pictures(ABC):
    """What draws the charts of one page."""

    scripts: tuple[str, ...] = ()
    """Those that the page needs, in their order."""

    @abstractmethod
    def plot(self, chart: Chart) -> str:
        """The picture of a chart."""

    def data(self) -> str:
        """What the scripts draw from, at the end of the page."""
        return ""

    def add(self, chart: Chart) -> str:
        """A chart with its title, its legend and the table behind it."""
        note = f"<p>{words(chart.note)}</p>" if chart.note else ""
        behind = f"<details><summary>As a table</summary>{table(chart.header, chart.lines)}</details>"
        return (
            f"<figure><figcaption><h3>{text(chart.title)}</h3>{note}</figcaption>{self.plot(chart)}"
            f"{behind if chart.header else ''}</figure>"
        )

    def grid(self, charts: Sequence[Chart]) -> str:
        """Charts side by side where there is room."""
        return f'<div class="grid">{"".join(map(self.add, charts))}</div>' if charts else ""


def text(value: object) -> str:
    """Text of any origin, as HTML that shows it."""
    return html.escape(figures.clean(value), quote=True)


def words(value: object) -> str:
    """As :func:`text`, for reading: a number and its unit stay on one line."""
    return html.escape(_MEASURED.sub("\u00a0", figures.clean(value)), quote=True)


def short(value: object, limit: int = 26) -> str:
    """A name for a picture: its middle goes if it is long. It isn't escaped yet."""
    plain = figures.clean(value)
    return plain if len(plain) <= limit else f"{plain[: limit // 2 - 1]}…{plain[-(limit // 2) :]}"


def safe_json(data: object) -> str:
    """JSON that no HTML parser can take for the end of a script."""
    out = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char, escaped in _SAFE.items():
        out = out.replace(char, escaped)
    return out


def table(header: Sequence[str], lines: Iterable[Sequence[object]], *, prose: bool = False) -> str:
    """A table of text, in a box that scrolls sideways by itself. Columns of numbers are aligned right.

    Args:
        header: Column titles; none for a table of names and values.
        lines: Cells.
        prose: No column is one of numbers, whatever its cells look like.
    """
    rows = [[words(cell) for cell in line] for line in lines]
    titles = [words(title) for title in header]
    columns = list(zip_longest(*([titles] if titles else []), *rows, fillvalue=""))
    # Narrow columns of long text are unreadable: the table scrolls instead.
    widths = [min(_WIDEST, max(len(html.unescape(cell)) for cell in column)) for column in columns]
    numbers = [not prose and index > 0 and _numeric(rows, index) for index in range(len(columns))]

    def cells(tag: str, line: Sequence[str], *, first: bool) -> str:
        out = []
        for cell, width, number in zip(line, widths, numbers, strict=False):
            least = f' style="min-width:{0.85 * width + 1.5:.1f}ch"' if first and not number else ""
            out.append(f"<{tag}{' class=n' if number else ''}{least}>{cell}</{tag}>")
        return "".join(out)

    head = f"<thead><tr>{cells('th', titles, first=True)}</tr></thead>" if titles else ""
    body = "".join(f"<tr>{cells('td', line, first=not titles and index == 0)}</tr>" for index, line in enumerate(rows))
    return f'<div class="scroll" tabindex=0><table>{head}<tbody>{body}</tbody></table></div>'


def _numeric(rows: Sequence[Sequence[str]], index: int) -> bool:
    return all(_NUMBER.fullmatch(html.unescape(row[index])) for row in rows if len(row) > index)


def section(title: str, *parts: str) -> str:
    """A heading and what is under it; nothing where there is nothing."""
    inside = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{inside}</section>" if inside else ""


def card(inside: str) -> str:
    """A box."""
    return f'<div class="card">{inside}</div>' if inside else ""


def folded(title: str, inside: str, about: str = "") -> str:
    """A section that opens when it is asked to; nothing where there is nothing.

    Args:
        title: What it is called.
        inside: What is in it.
        about: What is in it in some words.
    """
    said = f" <span>{words(about)}</span>" if about else ""
    return f'<details class="fold"><summary><h2>{text(title)}</h2>{said}</summary>{inside}</details>' if inside else ""
