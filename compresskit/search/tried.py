"""What is known of a candidate that was tried, and which candidates are worth having."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from compresskit.searched import Tried

Goal = Literal["size", "latency"]
Pick = Literal["size", "latency", "quality", "knee"]


_BEHIND = math.log(1.5)


def costs(one: Tried, goals: Sequence[Goal]) -> tuple[float, ...]:
    """What is to be small, by goal: logarithms of ratios to the original."""
    known = {"size": one.smaller, "latency": one.faster}
    return tuple(-math.log(found) if (found := known[goal]) else 0.0 for goal in goals)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """No worse anywhere and better somewhere; less is better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def area(tried: Iterable[Tried], goals: Sequence[Goal]) -> float:
    """What candidates dominate, in logarithms of ratios; of a single goal the largest logarithm.

    It begins somewhat behind the original, so that what is better in one goal only counts too.
    """
    points = sorted((tuple(max(0.0, _BEHIND - cost) for cost in costs(one, goals)) for one in tried), reverse=True)
    found = top = 0.0
    for point in points:
        width, height = point[0], point[1] if len(point) > 1 else 1.0
        if height > top:
            found += width * (height - top)
            top = height
    return found


def front(tried: Iterable[Tried], goals: Sequence[Goal]) -> list[Tried]:
    """The candidates that keep the bars and that no other beats in all goals and in quality, the smallest first."""
    kept = {tuple(map(repr, one.steps)): one for one in tried if one.state == "kept"}.values()
    at = {one.number: (*costs(one, goals), one.drop or 0.0) for one in kept}
    found = [one for one in kept if not any(dominates(at[other.number], at[one.number]) for other in kept)]
    return sorted(found, key=lambda one: (one.bytes or 0, one.number))


def shortlist(found: Sequence[Tried], close: Sequence[Tried], picks: Sequence[Pick], count: int) -> list[Tried]:
    """Which candidates are to be judged, the one that is wanted most first.

    Some are those of the front that are wanted most, then its smallest and its fastest, then two that miss the bar by
    no more than chance, then those that pass without any of their drop forgiven, so that not all depend on what is
    hoped for.

    Args:
        found: The front.
        close: That miss the bars, but not surely.
        picks: What is wanted; the first decides the order.
        count: How many.
    """
    pick, order = picks[0], ranked(found, picks[0])
    sure = [one for one in order if not one.forgiven]
    ends = [*ranked(found, "size")[:1], *ranked(found, "latency")[:1]]
    others = [one for other in picks[1:] for one in ranked(found, other)[:2]]
    wanted = [*order[: max(1, count // 2 - 1)], *others, *ends, *ranked(close, pick)[:2], *sure, *order]
    chosen = list({one.number: one for one in wanted}.values())[:count]
    return ranked(chosen, pick)


def ranked(found: Sequence[Tried], pick: Pick) -> list[Tried]:
    """Candidates, the one that is wanted most first."""

    def merit(one: Tried) -> float:
        smaller, faster = math.log(one.smaller or 1.0), math.log(one.faster or 1.0)
        by = {"size": smaller, "latency": faster, "quality": -(one.drop or 0.0), "knee": smaller + faster}
        return by[pick]

    return sorted(found, key=lambda one: (-merit(one), one.drop or 0.0, one.number))
