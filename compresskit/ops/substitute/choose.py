"""Which blocks are substituted, and by what: the least loss for a number of blocks, or for what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_HALVINGS = 60
_NOTHING = 1e-9
"""Loss below which a candidate is taken to lose so much: what is measured there is rounding."""


class Priced(Protocol):
    """What could replace a part of a model; several of one name differ in what they are."""

    @property
    def name(self) -> str:
        """Of the part."""

    @property
    def loss(self) -> float:
        """Distance of the model's output with it alone."""

    @property
    def whole(self) -> float:
        """Multiply-accumulates of what was timed."""

    @property
    def saved(self) -> float:
        """Multiply-accumulates that it saves."""

    @property
    def time(self) -> float | None:
        """Share of the time; None where it wasn't measured."""


P = TypeVar("P", bound=Priced)


def saved_macs(c: Priced) -> float:
    """Multiply-accumulates that a candidate saves."""
    return c.saved


def saved_time(c: Priced) -> float:
    """The same, where it was timed those that take the time which it saves."""
    return c.saved if c.time is None else c.whole * (1 - c.time)


def by_count(found: Sequence[P], count: int, price: Callable[[P], float]) -> list[P]:
    """As many blocks as asked for, in the order of their loss.

    Args:
        found: All candidates; several of one block differ in what they are.
        count: Most blocks.
        price: What a candidate saves: of several of one block, the one that loses least for it is taken.
    """
    best: dict[str, P] = {}
    for c in found:
        known = best.get(c.name)
        if known is None or _rate(c, price) < _rate(known, price):
            best[c.name] = c
    return sorted(best.values(), key=lambda c: c.loss)[:count]


def by_cost(found: Sequence[P], least: float, price: Callable[[P], float], count: int | None = None) -> list[P]:
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


def most(found: Sequence[P], price: Callable[[P], float], count: int | None = None) -> float:
    """The most that can be saved."""
    return sum(map(price, _at(found, 1e12, price, count)))


def _at(found: Sequence[P], worth: float, price: Callable[[P], float], count: int | None) -> list[P]:
    """The best candidates where a unit of what is saved is worth so much loss."""
    best: dict[str, tuple[float, P]] = {}
    for c in found:
        gain = worth * price(c) - c.loss
        if gain > 0 and (c.name not in best or gain > best[c.name][0]):
            best[c.name] = gain, c
    ranked = sorted(best.values(), key=lambda pair: -pair[0])
    return [c for _, c in ranked[:count]]


def _rate(c: P, price: Callable[[P], float]) -> float:
    return max(c.loss, _NOTHING) / max(price(c), 1e-12)
