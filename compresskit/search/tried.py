"""What is known of a candidate that was tried, and which candidates are worth having."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from compresskit.searched import Tried

Goal = Literal["size", "latency"]
Pick = Literal["size", "latency", "quality", "knee"]


def costs(one: Tried, goals: Sequence[Goal]) -> tuple[float, ...]:
    """What is to be small, by goal: logarithms of ratios to the original."""
    known = {"size": one.smaller, "latency": one.faster}
    return tuple(-math.log(found) if (found := known[goal]) else 0.0 for goal in goals)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """No worse anywhere and better somewhere; less is better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def front(tried: Iterable[Tried], goals: Sequence[Goal]) -> list[Tried]:
    """The candidates that keep the bars and that no other beats in all goals and in quality, the smallest first."""
    kept = {tuple(map(repr, one.steps)): one for one in tried if one.state == "kept"}.values()
    at = {one.number: (*costs(one, goals), one.drop or 0.0) for one in kept}
    found = [one for one in kept if not any(dominates(at[other.number], at[one.number]) for other in kept)]
    return sorted(found, key=lambda one: (one.bytes or 0, one.number))


def ranked(found: Sequence[Tried], pick: Pick) -> list[Tried]:
    """Candidates, the one that is wanted most first."""

    def merit(one: Tried) -> float:
        smaller, faster = math.log(one.smaller or 1.0), math.log(one.faster or 1.0)
        by = {"size": smaller, "latency": faster, "quality": -(one.drop or 0.0), "knee": smaller + faster}
        return by[pick]

    return sorted(found, key=lambda one: (-merit(one), one.drop or 0.0, one.number))
