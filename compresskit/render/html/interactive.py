"""Draws charts with plotly, whose whole library is put into the page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from typing import Any

from compresskit.errors import missing_package
from compresskit.render.html.chart import Axis, Chart, Series
from compresskit.render.html.markup import Pictures, safe_json, short, text
from compresskit.render.html.style import looks

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon")
PATTERNS = ("", "/", "x", "-", "|", "+", ".")
_ROOM = 0.7
"""What the series of a row take of it together."""
_WHOLE = 2000
"""Characters of a name that only tells rows apart."""


class Interactive(Pictures):
    """Pictures that answer to the pointer.

    Raises:
        MachineError: plotly isn't installed.
    """

    def __init__(self) -> None:
        self.scripts = (_library(), SCRIPT)
        self._drawn: list[dict[str, Any]] = []

    def plot(self, chart: Chart) -> str:
        """The place of a chart; what is drawn there goes into :meth:`data`."""
        number, height = len(self._drawn), _height(chart)
        self._drawn.append({"data": _traces(chart), "layout": _layout(chart) | {"height": height}})
        place = f'<div class="plot" data-figure="{number}" style="height:{height}px"></div>'
        return f'<div class="tall" tabindex=0>{place}</div>' if height > 560 else place

    def data(self) -> str:
        """All data, safe inside of a script element."""
        return f'<script type="application/json" id="figures">{safe_json(self._drawn)}</script>'


def library_size() -> int:
    """Bytes of the plotting library in each page."""
    return len(_library().encode("utf-8"))


def _library() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise missing_package("plotly") from error
    # A comment of the library names an address, and nothing else of it may end the element.
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _label(value: object, limit: int = 26) -> str:
    """Plotly reads some tags and entities, so these are escaped."""
    return html.escape(short(value, limit), quote=False)


def _height(chart: Chart) -> int:
    rows = len(chart.y.rows)
    return 80 + rows * (18 + 14 * chart.lanes) if rows else 300 + 18 * len(chart.series)


def _traces(chart: Chart) -> list[dict[str, Any]]:
    lanes, rows = chart.lanes, bool(chart.y.rows)
    step = min(0.16, _ROOM / lanes)
    return [_trace(one, step * (lane % lanes - (lanes - 1) / 2), rows) for lane, one in enumerate(chart.series)]


def _trace(series: Series, shift: float, rows: bool) -> dict[str, Any]:
    look, marks = looks(series.look), series.marks
    colour = "--soft" if series.kind == "front" else f"--c{look.place}"
    trace: dict[str, Any] = {
        "name": _label(series.name),
        "x": [mark.x for mark in marks],
        "y": [mark.y + shift for mark in marks],
        "hovertext": [_label(mark.text, _WHOLE) for mark in marks],
        "hoverinfo": "skip" if series.kind == "front" else "text",
    }
    if series.kind == "bars":
        pattern = {"shape": PATTERNS[look.place], "fgcolor": "--card", "fillmode": "overlay", "size": 5}
        trace |= {"type": "bar", "orientation": "h", "marker": {"color": colour, "pattern": pattern}}
    else:
        mode = {"points": "markers", "trace": "lines+markers"}.get(series.kind, "lines")
        dash = "2px 4px" if series.kind == "front" else ",".join(f"{px}px" for px in look.dash.split()) or "solid"
        trace |= {
            "type": "scatter", "mode": mode,
            "marker": {"size": 11, "color": colour, "symbol": SYMBOLS[look.place]},
            "line": {"color": colour, "width": 2.2, "dash": dash if mode == "lines" else "solid"},
        }  # fmt: skip
    if any(mark.low is not None for mark in marks):
        trace["error_x" if rows else "error_y"] = _whiskers(
            series, (lambda mark: mark.x) if rows else lambda mark: mark.y
        )
    return trace


def _whiskers(series: Series, value: Callable[[Any], float]) -> dict[str, Any]:
    ends = [
        (value(mark) if mark.low is None else mark.low, value(mark), value(mark) if mark.high is None else mark.high)
        for mark in series.marks
    ]
    return {
        "type": "data", "symmetric": False, "thickness": 1.6, "width": 4, "color": "--soft",
        "array": [max(0.0, high - at) for _, at, high in ends],
        "arrayminus": [max(0.0, at - low) for low, at, _ in ends],
    }  # fmt: skip


def _layout(chart: Chart) -> dict[str, Any]:
    guides = [(guide, {"x0": guide.at, "x1": guide.at, "yref": "paper"}) for guide in chart.guides]
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    return {
        "margin": {"l": 8, "r": 16, "t": 24 + 16 * bool(guides), "b": 36},
        "showlegend": chart.has_legend,
        "legend": legend,
        "bargap": 0.25,
        "xaxis": _axis(chart.x),
        "yaxis": _axis(chart.y),
        "shapes": [
            {"type": "line", "y0": 0, "y1": 1, "line": {"dash": "dot", "width": 1.5, "color": "--soft"}, **at}
            for _, at in guides
        ],
        "annotations": [
            {
                "x": guide.at if not chart.x.log else _log(guide.at), "y": 1, "yref": "paper", "yanchor": "bottom",
                "text": _label(guide.text), "showarrow": False, "font": {"size": 11, "color": "--soft"},
            }
            for guide, _ in guides
        ],
    }  # fmt: skip


def _log(value: float) -> float:
    """Where plotly wants what isn't data on a logarithmic axis."""
    return math.log10(max(value, 1e-300))


def _axis(axis: Axis) -> dict[str, Any]:
    if axis.rows:
        count = len(axis.rows)
        return {
            "range": [count - 0.5, -0.5], "fixedrange": True, "showgrid": False, "zeroline": False,
            "tickmode": "array", "tickvals": list(range(count)), "ticktext": [_label(name, 34) for name in axis.rows],
        }  # fmt: skip
    ticks = axis.ticks()
    return {
        "type": "log" if axis.log else "linear",
        "range": [_log(axis.low), _log(axis.high)] if axis.log else [axis.low, axis.high],
        "fixedrange": True, "zeroline": False, "title": {"text": _label(axis.title, 60)},
        "tickmode": "array", "tickvals": ticks, "ticktext": [text(axis.shown(at)) for at in ticks],
    }  # fmt: skip


SCRIPT = """
(function () {
  'use strict';
  var figures = JSON.parse(document.getElementById('figures').textContent);
  var root = document.documentElement, dark = window.matchMedia('(prefers-color-scheme: dark)');
  var nodes = Array.prototype.slice.call(document.querySelectorAll('[data-figure]'));
  var options = {displaylogo: false, displayModeBar: false, responsive: true, scrollZoom: false};
  var drawn = new Map();

  // Colours are names of the style sheet's, so that both schemes and the paper have theirs.
  function coloured(value) {
    if (typeof value === 'string') {
      return /^--[a-z0-9]+$/.test(value) ? getComputedStyle(root).getPropertyValue(value).trim() : value;
    }
    if (Array.isArray(value)) { return value.map(coloured); }
    if (value === null || typeof value !== 'object') { return value; }
    return Object.fromEntries(Object.entries(value).map(function (pair) { return [pair[0], coloured(pair[1])]; }));
  }
  function shown(node) {
    var given = figures[Number(node.getAttribute('data-figure'))], layout = coloured(given.layout);
    layout.paper_bgcolor = layout.plot_bgcolor = 'rgba(0,0,0,0)';
    var ink = coloured('--ink');
    layout.font = {color: ink, size: 12, family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'};
    layout.hoverlabel = {bgcolor: coloured('--card'), bordercolor: ink, font: {color: ink}, align: 'left'};
    ['xaxis', 'yaxis'].forEach(function (name) {
      layout[name] = Object.assign({gridcolor: coloured('--line'), linecolor: coloured('--line'), automargin: true},
        layout[name]);
    });
    return [node, coloured(given.data), layout, options];
  }
  function draw(node) {
    // One that fails leaves the others to be drawn; the console tells.
    if (!drawn.has(node)) {
      drawn.set(node, new Promise(function (done) { done(Plotly.newPlot.apply(null, shown(node))); }));
    }
  }
  // What is folded away is drawn when it opens. It may have a width all the same: a browser may lay it out unseen.
  function visible(node) { return node.offsetWidth && !node.closest('details:not([open])'); }
  // What is on the screen first, then a picture at a time.
  function next() {
    var node = nodes.find(function (one) { return visible(one) && !drawn.has(one); });
    if (node) { draw(node); setTimeout(next, 0); return; }
    Promise.all(drawn.values()).then(function () { root.setAttribute('data-drawn', String(drawn.size)); });
  }
  function again() { drawn.forEach(function (_, node) { Plotly.react.apply(null, shown(node)); }); }
  document.addEventListener('toggle', next, true);
  dark.addEventListener('change', again);
  window.addEventListener('beforeprint', function () {
    root.setAttribute('data-paper', '');
    nodes.filter(visible).forEach(draw);
    again();
    drawn.forEach(function (_, node) { Plotly.Plots.resize(node); });
  });
  window.addEventListener('afterprint', function () { root.removeAttribute('data-paper'); again(); });
  nodes.filter(function (node) {
    return visible(node) && node.getBoundingClientRect().top < window.innerHeight;
  }).forEach(draw);
  setTimeout(next, 0);
}());
"""
