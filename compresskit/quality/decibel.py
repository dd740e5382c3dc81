"""The one scale of signal-to-noise ratios."""

from __future__ import annotations

import math

MAX_SQNR = 200.0
"""Given for no error at all, in dB; float32 rounding alone is about 140."""


def decibels(signal: float, noise: float) -> float:
    """Power of a signal over that of its error, in dB, within ±:data:`MAX_SQNR`; the top where there is no error.

    Args:
        signal: Sum of squares, 0 or more.
        noise: Sum of squares of the error, 0 or more.
    """
    if not noise:
        return MAX_SQNR
    return max(-MAX_SQNR, min(MAX_SQNR, 10 * math.log10(signal / noise))) if signal > 0 and noise > 0 else -MAX_SQNR
