"""Draws a chart as SVG that stretches with the page while its text keeps its size.

Places along x are shares of the width, those along y are pixels. All colours are classes of the style sheet, so that
the picture follows the reader's scheme and the paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from compresskit.render.html.chart import Axis, Chart, Mark, Series
from compresskit.render.html.markup import Pictures, short, text, words
from compresskit.render.html.style import looks

_NAME, _LANE, _GAP = 17, 15, 10
"""Pixels of a row: its name, one series, and the room to the next."""
_HEIGHT = 230
"""Of a chart without rows."""
_LETTER = 6.6
"""Width of a letter of the labels in pixels."""
_MANY = 8
"""Rows from which on the scale is at the top."""
_POINTS = 120
"""Of a line at most; a picture has no room for more."""
_SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z", "M0-6.5L6.5 0 0 6.5-6.5 0z", "M-5-5h10v10h-10z", "M0-6L6 5h-12z",
    "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z", "M0-7l1.8 4.5 4.9.3-3.8 3.1 1.2 4.7L0 3 -4.1 5.6-2.9.9-6.7-2.2-1.8-2.5z",
    "M-6 0l3-5.2h6l3 5.2-3 5.2h-6z",
)  # fmt: skip


class Still(Pictures):
    """Pictures that need no script."""

    def plot(self, chart: Chart) -> str:
        """The picture, with its legend."""
        drawn = _rows(chart) if chart.y.rows else _plane(chart)
        return f"{legend(chart)}{f'<div class=tall tabindex=0>{drawn}</div>' if len(chart.y.rows) > 14 else drawn}"


def legend(chart: Chart) -> str:
    """Which symbol is whose; nothing where the chart has one series."""
    if not chart.has_legend:
        return ""
    parts = "".join(
        f"<li><svg width=16 height=14 class={_class(one)}>{_sample(one)}</svg> {text(short(one.name, 30))}</li>"
        for one in chart.series
    )
    return f'<ul class="legend">{parts}</ul>'


def _sample(series: Series) -> str:
    if series.kind in ("points", "trace"):
        return _symbol("8", 7, series.look)
    if series.kind == "bars":
        return "<rect y=2 width=16 height=10 />"
    return f"<path class=l {_dashes(series)} d='M0 7H16'/>"


def _rows(chart: Chart) -> str:
    """A row a name, with the name above its marks."""
    lanes = chart.lanes
    each = _NAME + _LANE * lanes + _GAP
    at_top = len(chart.y.rows) > _MANY
    top = 14 * len(chart.guides) + (18 if at_top else 0)
    bottom = top + each * len(chart.y.rows)
    marked = Counter(mark.y for series in chart.series for mark in series.marks)
    parts = [*_grid(chart.x, top, bottom, top - 6 if at_top else bottom + 15), *_guides(chart, top, bottom)]
    values = {mark.y: mark.value for series in chart.series for mark in series.marks if marked[mark.y] == 1}
    for index, name in enumerate(chart.y.rows):
        base = top + index * each + 12
        parts.append(f"<text y={base}>{words(short(name, 38))}</text>")
        if values.get(index):
            parts.append(f'<text x="100%" y={base} class=v>{words(values[index])}</text>')
    for lane, series in enumerate(chart.series):
        for mark in series.marks:
            middle = top + round(mark.y) * each + _NAME + _LANE * (lane % lanes) + _LANE // 2
            parts.append(_lying(chart.x, series, mark, middle))
    return _svg(chart, parts, bottom + (2 if at_top else 20), "6px 18px 0 16px")


def _lying(x: Axis, series: Series, mark: Mark, y: int) -> str:
    """A mark of a row, with its interval along the row."""
    if series.kind == "bars":
        inside = f'<rect y={y - 5} width="{_share(x, mark.x)}" height=10 rx=1 />'
    else:
        inside = _symbol(_share(x, mark.x), y, series.look)
    return _group(series, mark, _whisker(x, mark, y) + inside)


def _whisker(x: Axis, mark: Mark, y: int) -> str:
    if mark.low is None or mark.high is None:
        return ""
    low, high = _share(x, mark.low), _share(x, mark.high)
    ends = "".join(f'<line class=w x1="{at}" x2="{at}" y1={y - 4} y2={y + 4} />' for at in (low, high))
    return f'<line class=w x1="{low}" x2="{high}" y1={y} y2={y} />{ends}'


def _plane(chart: Chart) -> str:
    """Two scales, figures over figures."""
    top, bottom = 8 + 14 * len(chart.guides) + 16 * bool(chart.y.title), 0
    bottom = top + _HEIGHT
    ticks = [(at, words(chart.y.shown(at))) for at in chart.y.ticks()]
    left = round(14 + _LETTER * max((len(shown) for _, shown in ticks), default=0))

    def high(value: float) -> float:
        return round(bottom - chart.y.place(value) * _HEIGHT, 1)

    parts = _grid(chart.x, top, bottom, bottom + 16)
    for at, shown in ticks:
        parts.append(f'<line class=g x2="100%" y1={high(at)} y2={high(at)} />')
        parts.append(f"<text x=-7 y={high(at) + 4} class=y>{shown}</text>")
    if chart.y.title:
        parts.append(f"<text x={-left + 2} y=10 class=t>{words(chart.y.title)}</text>")
    if chart.x.title:
        parts.append(f'<text x="100%" y={bottom + 33} class="t v">{words(chart.x.title)}</text>')
    parts += _guides(chart, top, bottom)
    for series in chart.series:
        if series.kind not in ("points", "bars"):
            parts.append(_line(chart, series, top))
        if series.kind in ("points", "trace"):
            parts += [_standing(chart.x, series, mark, high) for mark in series.marks]
    return _svg(chart, parts, bottom + (38 if chart.x.title else 22), f"6px 18px 0 {left}px")


def _standing(x: Axis, series: Series, mark: Mark, high: Callable[[float], float]) -> str:
    """A mark between two scales, with its interval upright."""
    at, inside = _share(x, mark.x), ""
    if mark.low is not None and mark.high is not None:
        inside = f'<line class=w x1="{at}" x2="{at}" y1={high(mark.low)} y2={high(mark.high)} />'
    return _group(series, mark, inside + _symbol(at, high(mark.y), series.look))


def _line(chart: Chart, series: Series, top: int) -> str:
    marks = series.marks
    if series.kind == "line" and len(marks) > _POINTS:
        marks = [marks[round(i * (len(marks) - 1) / (_POINTS - 1))] for i in range(_POINTS)]
    points = " ".join(
        f"{1000 * chart.x.place(mark.x):.0f},{_HEIGHT * (1 - chart.y.place(mark.y)):.1f}" for mark in marks
    )
    return (
        f'<svg y={top} width="100%" height={_HEIGHT} viewBox="0 0 1000 {_HEIGHT}" preserveAspectRatio="none">'
        f'<polyline class="l {_class(series)}" {_dashes(series)} points="{points}"><title>{text(series.name)}</title>'
        "</polyline></svg>"
    )


def _dashes(series: Series) -> str:
    pattern = "2 4" if series.kind == "front" else looks(series.look).dash
    return f'stroke-dasharray="{pattern}"' if pattern and series.kind != "trace" else ""


def _grid(x: Axis, top: float, bottom: float, label: float) -> list[str]:
    """Upright lines of a scale, and its figures."""
    out = []
    for at in x.ticks():
        share = _share(x, at)
        out.append(f'<line class=g x1="{share}" x2="{share}" y1={top} y2={bottom} />')
        out.append(f'<text x="{share}" y={label} class=x>{words(x.shown(at))}</text>')
    return out


def _guides(chart: Chart, top: int, bottom: int) -> list[str]:
    out = []
    first = top - 14 * len(chart.guides) - (18 if len(chart.y.rows) > _MANY else 0)
    for index, guide in enumerate(chart.guides):
        share, y = chart.x.place(guide.at), first + 14 * index
        place = f"{100 * share:.2f}%"
        ending = ' style="text-anchor:end"' if share > 0.5 else ""
        out.append(f'<line class=d x1="{place}" x2="{place}" y1={y + 13} y2={bottom} />')
        out.append(f'<text x="{place}" y={y + 10} class=t{ending}>{words(guide.text)}</text>')
    return out


def _group(series: Series, mark: Mark, inside: str) -> str:
    return f"<g class={_class(series)}><title>{words(mark.text)}</title>{inside}</g>"


def _class(series: Series) -> str:
    return "front" if series.kind == "front" else f"c{looks(series.look).place}"


def _symbol(x: str, y: float, look: int) -> str:
    return f'<svg x="{x}" y={y} class=m><path d="{_SHAPES[looks(look).place]}"/></svg>'


def _share(x: Axis, value: float) -> str:
    return f"{100 * min(1.0, max(0.0, x.place(value))):.2f}%"


def _svg(chart: Chart, parts: Sequence[str], height: float, padding: str) -> str:
    return (
        f'<div class="plot" style="padding:{padding}"><svg role="img" aria-label="{text(chart.title)}" '
        f'height="{height:.0f}">{"".join(parts)}</svg></div>'
    )
