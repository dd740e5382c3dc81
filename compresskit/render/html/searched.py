"""A search on the page: its candidates in a trade-off picture, and all outcomes."""

from __future__ import annotations

from collections.abc import Callable

from compresskit.errors import as_flags
from compresskit.render import figures
from compresskit.render.html.chart import Axis, Chart, Mark, Series, metric, span, unit
from compresskit.searched import STATES, Search, Tried, steps_text

_LOOKS = {"kept": ("passes", 3), "missed": ("misses a limit", 2), "dropped": ("dropped after the preview", 0)}
_WINNER = ("the result", 5)
HEADER = ("candidate", "steps", "smaller", "speed", "change", "outcome", "seconds")


def searches(search: Search) -> list[Chart]:
    """Quality over size and over speed."""
    found = (
        _scatter(search, "Candidates: quality and size", "times smaller", lambda one: one.smaller),
        _scatter(search, "Candidates: quality and speed", "times as fast", lambda one: one.faster),
    )
    return [chart for chart in found if chart is not None]


def lines(search: Search) -> list[tuple[str, ...]]:
    """All candidates, the result first, then those of the front, then the others in the order of their numbers."""
    ranks = {number: rank for rank, number in enumerate(search.front, 1)} | {search.winner: 0}
    ordered = sorted(search.tried, key=lambda one: (ranks.get(one.number, len(ranks) + 1), one.number))
    return [_line(one, search) for one in ordered]


def _line(one: Tried, search: Search) -> tuple[str, ...]:
    mark = "→ " if one.number == search.winner else "• " if one.number in search.front else ""
    ratios = [figures.DASH if value is None else f"{value:.2f}×" for value in (one.smaller, one.faster)]
    change = figures.DASH if one.drop is None else f"{0 - one.drop:+.2f} pt"
    became = STATES[one.state]
    why = f"{became}: {as_flags(one.reason)}" if one.reason else became
    return f"{mark}{one.number}", steps_text(one.steps), *ratios, change, why, f"{one.seconds:.0f}"


def _scatter(search: Search, title: str, axis: str, value: Callable[[Tried], float | None]) -> Chart | None:
    points = [(one, at) for one in search.tried if one.drop is not None and (at := value(one))]
    if len(points) < 3:
        return None
    groups = {(name, look): [p for p in points if p[0].state == state] for state, (name, look) in _LOOKS.items()}
    groups = {key: [p for p in own if p[0].number != search.winner] for key, own in groups.items()}
    groups[_WINNER] = [p for p in points if p[0].number == search.winner]
    series = [Series(name, "points", [_mark(*p) for p in own], look) for (name, look), own in groups.items() if own]
    ends = span(end for one in series for mark in one.marks for end in (mark.low, mark.y, mark.high))
    x = Axis(*span((at for _, at in points), log=True), title=axis, shown=unit("×"), log=True)
    y = Axis(*ends, title=f"change of {metric(search.metric)}, pt", shown=lambda at: f"{at:+.3g}" if at else "0")
    where = f"measured on {figures.clean(search.chosen_by)}, which the choice was based on"
    return Chart(title, series, x, y, note=f"up and to the right is better; {where}; whiskers: 95 % interval")


def _mark(one: Tried, at: float) -> Mark:
    change = 0 - (one.drop or 0.0)
    low, high = (None, None) if one.interval is None else (-one.interval[1], -one.interval[0])
    return Mark(at, change, f"{one.number}: {steps_text(one.steps)}: {at:.2f}×, {change:+.2f} pt", low, high)
