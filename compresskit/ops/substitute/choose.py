"""Which blocks are substituted, and by what: the least loss for a number of blocks, or for what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compresskit.ops.substitute.candidates import Candidate

_HALVINGS = 60
_NOTHING = 1e-9
"""Loss below which a candidate is taken to lose so much: what is measured there is rounding."""


def saved_macs(c: Candidate) -> float:
    """Multiply-accumulates that a candidate saves."""
    return float(c.site.macs - c.site.costs[c.kind])


def saved_time(c: Candidate) -> float:
    """The same, where it was timed those that take the time which it saves."""
    return saved_macs(c) if c.time is None else c.site.whole * (1 - c.time)


def by_count(found: Sequence[Candidate], count: int, price: Callable[[Candidate], float]) -> list[Candidate]:
    """As many blocks as asked for, in the order of their loss.

    Args:
        found: All candidates; several of one block differ in what they are.
        count: Most blocks.
        price: What a candidate saves: of several of one block, the one that loses least for it is taken.
    """
    best: dict[str, Candidate] = {}
    for c in found:
        known = best.get(c.site.name)
        if known is None or _rate(c, price) < _rate(known, price):
            best[c.site.name] = c
    return sorted(best.values(), key=lambda c: c.loss)[:count]


def by_cost(
    found: Sequence[Candidate], least: float, price: Callable[[Candidate], float], count: int | None = None
) -> list[Candidate]:
    """The candidates that together save so much and lose least, about: the sum of their single losses is lowest.

    Args:
        found: All candidates.
        least: What is to be saved, in the unit of ``price``.
        price: What a candidate saves.
        count: Most blocks.

    Returns:
        One candidate a block at most; empty where all together don't save so much.
    """
    low, high = 0.0, 1.0
    while high < 1e12 and sum(map(price, _at(found, high, price, count))) < least:
        high *= 4
    if sum(map(price, _at(found, high, price, count))) < least:
        return []
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(map(price, _at(found, middle, price, count))) >= least else (middle, high)
    chosen = _at(found, high, price, count)
    for c in sorted(chosen, key=lambda c: -c.loss):  # what isn't needed
        if sum(map(price, chosen)) - price(c) >= least:
            chosen.remove(c)
    return chosen


def most(found: Sequence[Candidate], price: Callable[[Candidate], float], count: int | None = None) -> float:
    """The most that can be saved."""
    return sum(map(price, _at(found, 1e12, price, count)))


def _at(
    found: Sequence[Candidate], worth: float, price: Callable[[Candidate], float], count: int | None
) -> list[Candidate]:
    """The best candidates where a unit of what is saved is worth so much loss."""
    best: dict[str, tuple[float, Candidate]] = {}
    for c in found:
        gain = worth * price(c) - c.loss
        if gain > 0 and (c.site.name not in best or gain > best[c.site.name][0]):
            best[c.site.name] = gain, c
    ranked = sorted(best.values(), key=lambda pair: -pair[0])
    return [c for _, c in ranked[:count]]


def _rate(c: Candidate, price: Callable[[Candidate], float]) -> float:
    return max(c.loss, _NOTHING) / max(price(c), 1e-12)
