"""Figures as short text, the same in every drawing."""

from __future__ import annotations

import math

from compresskit.errors import as_flags, printable
from compresskit.report import Measurement

DASH = "–"


def clean(text: object) -> str:
    """Text of any origin on one line, without control characters; cut, with an ellipsis, only past 2000 characters."""
    return printable(text, limit=2000)


def prose(text: object) -> str:
    """A note or a reason as :func:`clean` gives it, with the options in it as the command line spells them."""
    return clean(as_flags(str(text)))


def size(count: float) -> str:
    """Bytes in decimal units with three digits: ``270 kB``, ``13.5 MB``."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"), " ")


def amount(count: float | None) -> str:
    """A count with three digits: ``272 k``, ``40.6 M``; a dash when unknown."""
    return DASH if count is None else _scaled(count, ("", "k", "M", "G", "T"), " ").strip()


def _scaled(count: float, units: tuple[str, ...], gap: str) -> str:
    power = 0
    # 999.5 rounds to 1000 and belongs to the next unit.
    while abs(count) >= 999.5 and power < len(units) - 1:
        count /= 1000
        power += 1
    digits = f"{count:.0f}" if power == 0 else f"{count:.3g}" if abs(count) < 100 else f"{count:.0f}"
    return f"{digits}{gap}{units[power]}"


def decimals(value: float) -> int:
    """How many decimals show four to five digits of a figure of this size."""
    return 2 if abs(value) >= 10 else 3 if abs(value) >= 1 else 4


def number(value: float | None, places: int | None = None) -> str:
    """A figure; a dash when there is none or it isn't finite."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{decimals(value) if places is None else places}f}"


def milliseconds(value: float | None) -> str:
    """A time in milliseconds with three digits and no unit: ``0.204``, ``24.6``, ``1280``."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def times(ratio: float | None) -> str:
    """A ratio: ``7.9×``, ``1.91×`` below 2."""
    if ratio is None or not math.isfinite(ratio):
        return DASH
    return f"{ratio:.1f}×" if ratio >= 2 else f"{ratio:.2f}×"


def speedup(found: Measurement | None) -> str:
    """A speedup with its 95 % interval: ``1.91× [1.85, 1.98]``."""
    if found is None:
        return DASH
    if found.low is None or found.high is None:
        return times(found.value)
    return f"{found.value:.2f}× [{found.low:.2f}, {found.high:.2f}]"


def quality(found: Measurement, base: Measurement | None) -> str:
    """A quality figure and its distance to the baseline's: ``accuracy 91.71 % (+0.01)``."""
    places = decimals(found.value)
    unit = f" {clean(found.unit)}" if found.unit else ""
    text = f"{clean(found.name)} {number(found.value, places)}{unit}"
    if base is None or base is found:
        return text
    return f"{text} ({found.value - base.value:+.{places}f})"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage: ``0``, ``<0.1 %``, ``12.5 %``; a dash when unknown."""
    if fraction is None:
        return DASH
    if fraction == 0:
        return "0 %"
    return "<0.1 %" if fraction < 0.001 else f"{100 * fraction:.1f} %"
