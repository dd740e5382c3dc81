"""Pieces of HTML. All text that comes from a report goes through :func:`text`."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from compresskit.render import figures

_SAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Chart:
    """A picture and the table behind it.

    Attributes:
        title: What it shows.
        data: Plotly's traces.
        layout: Plotly's layout; the page adds colours and fonts.
        header: Of the table.
        lines: Its cells.
        note: A line below the title: unit, n, what an interval is.
        height: Of the picture, in pixels.
    """

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""
    height: int = 220


@dataclass
class Pictures:
    """The pictures of a page; their data go into one JSON block at its end."""

    drawn: list[dict[str, Any]] = field(default_factory=list)

    def add(self, chart: Chart) -> str:
        """The place of a chart in the page."""
        number = len(self.drawn)
        self.drawn.append({"data": chart.data, "layout": {"height": chart.height, **chart.layout}})
        note = f"<p>{text(chart.note)}</p>" if chart.note else ""
        tall = chart.height > 520
        plot = f'<div class="plot" data-figure="{number}" style="height:{chart.height}px"></div>'
        return (
            f"<figure{' class=long' if tall else ''}><figcaption><h3>{text(chart.title)}</h3>{note}</figcaption>"
            f"{f'<div class=tall tabindex=0>{plot}</div>' if tall else plot}"
            f"<details><summary>As a table</summary>{table(chart.header, chart.lines)}</details></figure>"
        )

    def grid(self, charts: Sequence[Chart], *, wide: bool = False) -> str:
        """Charts side by side where there is room."""
        kind = "grid wide" if wide else "grid"
        return f'<div class="{kind}">{"".join(map(self.add, charts))}</div>'

    def json(self) -> str:
        """All data, safe inside of a script element."""
        return safe_json(self.drawn)


def text(value: object) -> str:
    """Text of any origin, as HTML that shows it."""
    return html.escape(figures.clean(value), quote=True)


def label(value: object, limit: int = 34) -> str:
    """Text for a picture: Plotly reads some tags and entities, so these are escaped; its middle goes if it is long."""
    plain = figures.clean(value)
    if len(plain) > limit:
        plain = f"{plain[: limit // 2 - 1]}…{plain[-(limit // 2) :]}"
    return html.escape(plain, quote=False)


def safe_json(data: object) -> str:
    """JSON that no HTML parser can take for the end of a script."""
    out = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char, escaped in _SAFE.items():
        out = out.replace(char, escaped)
    return out


def table(header: Sequence[str], lines: Iterable[Sequence[object]], *, prose: bool = False) -> str:
    """A table of text, in a box that scrolls sideways by itself.

    Args:
        header: Column titles; none for a table of names and values.
        lines: Cells.
        prose: All columns are text, aligned left.
    """
    head = f"<thead><tr>{''.join(f'<th scope=col>{text(c)}</th>' for c in header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in line)}</tr>" for line in lines)
    kind = ' class="text"' if prose else ""
    return f'<div class="scroll"><table{kind}>{head}<tbody>{body}</tbody></table></div>'


def section(title: str, *parts: str) -> str:
    """A heading and what is under it; nothing where there is nothing."""
    inside = "".join(parts)
    return f"<section><h2>{text(title)}</h2>{inside}</section>" if inside else ""
