"""A chart as data: what is drawn, not how. :mod:`svg` and :mod:`interactive` each draw any of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from compresskit.render import figures
from compresskit.report import Measurement, Report

Kind = Literal["points", "bars", "line", "trace", "front"]
"""``line`` joins its marks, ``trace`` shows them too, ``front`` is dotted and belongs to no model."""


@dataclass(frozen=True)
class Mark:
    """One figure.

    Attributes:
        x: Along the horizontal axis.
        y: Along the vertical axis; in a chart of rows the index of the row.
        text: What it says when it is pointed at.
        low: Of its 95 % interval, which lies along x in a chart of rows and along y elsewhere.
        high: Of the same.
        value: Written at the right of its row, where the row has one mark.
    """

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    value: str = ""


@dataclass(frozen=True)
class Series:
    """Marks that look alike: ``look`` is the place of their colour and symbol, 0 the original's."""

    name: str
    kind: Kind
    marks: Sequence[Mark]
    look: int = 0


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``; ``shown`` writes a figure on it, and ``whole`` wants no fractions there.

    With ``rows`` it lists them from the top, and ``low`` and ``high`` say nothing.
    """

    low: float = 0.0
    high: float = 1.0
    title: str = ""
    shown: Callable[[float], str] = "{:.6g}".format
    log: bool = False
    whole: bool = False
    rows: Sequence[str] = ()

    def place(self, value: float) -> float:
        """Where a figure lies, 0 at ``low`` and 1 at ``high``."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return (value - low) / ((high - low) or 1.0)

    def ticks(self, most: int = 5) -> list[float]:
        """Round figures on the axis, at most ``most``."""
        found = _decades(self.low, self.high, most) if self.log else []
        found = found if len(found) > 2 else _even(self.low, self.high, most)
        return [at for at in found if at == round(at)] if self.whole else found


@dataclass(frozen=True)
class Guide:
    """A figure on the horizontal axis that others are compared with, and what it is."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A picture and the table behind it.

    Attributes:
        title: What it shows.
        series: What is drawn.
        x: The horizontal axis.
        y: The vertical axis.
        header: Of the table; empty where the page has the figures in another table already.
        lines: Its cells.
        note: A line below the title: where it was measured, n, what an interval is.
        guides: Lines at certain figures.
    """

    title: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    header: Sequence[str] = ()
    lines: Sequence[Sequence[str]] = ()
    note: str = ""
    guides: Sequence[Guide] = ()

    @property
    def lanes(self) -> int:
        """Series side by side in each row: 1 where no row has two marks."""
        rows = Counter(mark.y for series in self.series for mark in series.marks)
        return len(self.series) if self.y.rows and max(rows.values(), default=1) > 1 else 1

    @property
    def has_legend(self) -> bool:
        """True where neither the rows nor the title say whose a mark is."""
        return self.lanes > 1 if self.y.rows else len(self.series) > 1


def span(values: Iterable[float | None], *, log: bool = False, room: float = 0.06) -> tuple[float, float]:
    """The ends of an axis that holds all figures, with some room."""
    known = [value for value in values if value is not None and math.isfinite(value) and (value > 0 or not log)]
    low, high = min(known, default=1.0), max(known, default=1.0)
    if log:
        factor = (high / low) ** room if high > low else 1.25
        return low / factor, high * factor
    space = (high - low) * room or abs(high) * 0.05 or 1.0
    return low - space, high + space


def unit(name: str) -> Callable[[float], str]:
    """Writes a figure of an axis with its unit."""
    gap = "" if name in ("", "×") else " "
    return lambda value: f"{value:.6g}{gap}{name}"


def order_of(report: Report) -> dict[str, int]:
    """Each model's place, which gives its colour and symbol."""
    return {entry.name: index for index, entry in enumerate(report.models)}


def metric(name: str) -> str:
    """What a measured figure is called on the page: ``SQNR``, ``peak memory``."""
    return figures.clean(name).replace("sqnr", "SQNR").replace("_", " ")


def interval(m: Measurement, shown: Callable[[float], str]) -> str:
    """The 95 % interval as text."""
    return figures.DASH if m.low is None or m.high is None else f"{shown(m.low)} to {shown(m.high)}"


def _even(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    if not rough > 0 or not math.isfinite(rough):
        return [low]
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * step for step in (1, 2, 2.5, 5, 10, 20) if power * step >= rough)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]
