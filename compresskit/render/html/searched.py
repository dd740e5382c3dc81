"""A search on the page: its candidates in a trade-off picture, the importance of each choice, and all outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compresskit.errors import as_flags
from compresskit.render import figures
from compresskit.render.html.compared import MARGIN, height, log_range
from compresskit.render.html.markup import Chart, label
from compresskit.searched import STATES, Search, Tried, tried_text

_LOOKS = {
    "kept": ("passes", "#2f9e57", "circle"),
    "missed": ("misses a limit", "#d1495b", "x"),
    "looked": ("preview only", "#b7bdc6", "circle-open"),
    "dropped": ("dropped after the preview", "#8a919c", "circle-open"),
}
_WINNER = ("the result", "#f2a900", "star")
HEADER = ("", "candidate", "steps", "smaller", "speed", "change", "outcome", "seconds")


def searches(search: Search) -> list[Chart]:
    """Quality over size and over speed, and the shares of the questions."""
    found = [
        chart
        for title, axis, value in (
            ("Candidates: quality and size", "times smaller", lambda one: one.smaller),
            ("Candidates: quality and speed", "times as fast", lambda one: one.faster),
        )
        if (chart := _scatter(search, title, axis, value)) is not None
    ]
    return found + _importance(search)


def lines(search: Search) -> list[tuple[str, ...]]:
    """All candidates, the result first, then those of the front, then the others in the order of their numbers."""
    ranks = {number: rank for rank, number in enumerate(search.front, 1)} | {search.winner: 0}
    ordered = sorted(search.tried, key=lambda one: (ranks.get(one.number, len(ranks) + 1), one.number))
    return [_line(one, search) for one in ordered]


def _line(one: Tried, search: Search) -> tuple[str, ...]:
    mark = "→" if one.number == search.winner else "•" if one.number in search.front else ""
    ratios = ["–" if value is None else f"{value:.2f}×" for value in (one.smaller, one.faster)]
    change = "–" if one.drop is None else f"{0 - one.drop:+.2f} pt"
    became = STATES[one.state]
    why = f"{became}: {as_flags(one.reason)}" if one.reason else became
    return mark, str(one.number), tried_text(one), *ratios, change, why, f"{one.seconds:.0f}"


def _scatter(search: Search, title: str, axis: str, value: Callable[[Tried], float | None]) -> Chart | None:
    points = [(one, at) for one in search.tried if one.drop is not None and (at := value(one))]
    if len(points) < 3:
        return None
    traces: list[dict[str, Any]] = []
    for state, (name, colour, symbol) in _LOOKS.items():
        own = [(one, at) for one, at in points if one.state == state and one.number != search.winner]
        traces += [_trace(name, own, colour, symbol, 9)] if own else []
    won = [(one, at) for one, at in points if one.number == search.winner]
    traces += [_trace(_WINNER[0], won, _WINNER[1], _WINNER[2], 15)] if won else []
    layout = {
        "margin": MARGIN,
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        "xaxis": {
            "type": "log", "range": log_range([at for _, at in points]), "ticksuffix": "×", "nticks": 6,
            "title": {"text": axis}, "fixedrange": True,
        },
        "yaxis": {"title": {"text": f"change of {label(search.metric)}, pt"}, "fixedrange": True},
    }  # fmt: skip
    told = [
        (str(one.number), figures.clean(tried_text(one)), f"{at:.2f}×", f"{-(one.drop or 0):+.2f}")
        for one, at in points
    ]
    where = f"measured on {figures.clean(search.chosen_by)}, which the choice was based on"
    note = f"up and to the right is better; {where}; whiskers: 95 % interval"
    return Chart(title, traces, layout, ("candidate", "steps", axis, "change, pt"), told, note, 420)


def _trace(name: str, points: Sequence[tuple[Tried, float]], colour: str, symbol: str, size: int) -> dict[str, Any]:
    drops = [one.drop or 0.0 for one, _ in points]
    bounds = [one.interval or (drop, drop) for (one, _), drop in zip(points, drops, strict=True)]
    return {
        "type": "scatter", "mode": "markers", "name": name,
        "x": [at for _, at in points],
        "y": [-drop for drop in drops],
        "customdata": [label(f"{one.number}: {tried_text(one)}", 90) for one, _ in points],
        "hovertemplate": "%{customdata}<br>%{x:.2f}×, %{y:+.2f} pt<extra></extra>",
        "marker": {"size": size, "color": colour, "symbol": symbol, "line": {"width": 1, "color": "#5b6470"}},
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": "#8a919c",
            "array": [drop - low for (low, _), drop in zip(bounds, drops, strict=True)],
            "arrayminus": [high - drop for (_, high), drop in zip(bounds, drops, strict=True)],
        },
    }  # fmt: skip


def _importance(search: Search) -> list[Chart]:
    found = [(name, share) for name, share in search.importance.items() if share > 0][:10]
    if not found:
        return []
    names = [label(name, 40) for name, _ in found]
    trace = {
        "type": "bar", "orientation": "h", "x": [100 * share for _, share in found], "y": names,
        "marker": {"color": "#3b6fb6"}, "hovertemplate": "%{y}: %{x:.0f} %<extra></extra>",
    }  # fmt: skip
    layout = {
        "margin": MARGIN | {"l": 190},
        "xaxis": {"ticksuffix": " %", "rangemode": "tozero", "fixedrange": True},
        "yaxis": {"autorange": "reversed", "fixedrange": True},
    }
    told = [(figures.clean(name), f"{100 * share:.0f} %") for name, share in found]
    note = f"the share of the differences in {figures.clean(search.goals[0])} that each choice explains (PED-ANOVA)"
    return [Chart("Which choice mattered", [trace], layout, ("choice", "share"), told, note, height(len(found)) + 40)]
