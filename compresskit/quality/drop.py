"""How much worse a model may become: ``0.5pt`` or ``1%``, whichever way the metric is better."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from compresskit.errors import UsageError

_FORM = "expected points as 0.5pt (75.0 % may become 74.5 %) or a share of the original's figure as 1%"


@dataclass(frozen=True)
class Limit:
    """The largest drop that passes.

    Attributes:
        value: Points of the metric, or percent of the baseline's figure; 0 or more.
        relative: True for percent.
    """

    value: float
    relative: bool

    def __str__(self) -> str:
        return f"{self.value:g}{'%' if self.relative else 'pt'}"

    def points(self, baseline: float) -> float:
        """The limit in the metric's points."""
        return abs(baseline) * self.value / 100 if self.relative else self.value


def parse_drop(text: str) -> Limit:
    """Read `max_drop`.

    Raises:
        UsageError: Anything but a number of 0 or more with ``pt`` or ``%``; a bare number would be ambiguous.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(pt|%)\s*", text, re.ASCII)
    value = float(match[1]) if match else math.nan
    if match is None or not math.isfinite(value):
        raise UsageError(f"`max_drop` '{text}' is not understood", _FORM)
    return Limit(value, match[2] == "%")


def within(
    limit: Limit,
    baseline: float,
    value: float,
    higher_is_better: bool,
    interval: tuple[float, float] | None = None,
) -> tuple[bool | None, float]:
    """Judge a drop.

    Args:
        limit: From :func:`parse_drop`.
        baseline: The original's figure.
        value: The new model's.
        higher_is_better: From the metric.
        interval: Of the drop in points (:attr:`Difference.interval`); without it the figures are taken as exact.

    Returns:
        Whether it passes, None when the interval has the limit inside it, and the drop in points (negative: better).
    """
    drop = baseline - value if higher_is_better else value - baseline
    if not (math.isfinite(drop) and math.isfinite(baseline)):
        return False, drop
    allowed = limit.points(baseline)
    # The figures are sums of binary fractions: 75.0 - 74.5 may come out as .5000000001.
    slack = 1e-9 * max(1.0, abs(baseline))
    if interval is not None and interval[0] < allowed - slack and interval[1] > allowed + slack:
        return None, drop
    return drop <= allowed + slack, drop
