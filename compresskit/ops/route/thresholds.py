"""Which exits are worth having, and how sure each must be: the least cost for a loss that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SWEEPS = 8
_HALVINGS = 14
_STEEPEST = 1e6


@dataclass(frozen=True)
class Tried:
    """What was seen of each exit on some samples; exits in the order of the pass.

    Attributes:
        confidence: float ``(exits, samples)``.
        loss: What leaving there loses against going on to the end, float ``(exits, samples)``: 1 where the answer is
            wrong in its place, −1 where it is right alone.
        body: Cost of the body until each exit, and of the whole body at the end.
        heads: Cost of each head.
    """

    confidence: Tensor
    loss: Tensor
    body: Sequence[float]
    heads: Sequence[float]


@dataclass(frozen=True)
class Chosen:
    """A way through the exits.

    Attributes:
        thresholds: By exit; those left out are missing.
        shares: Of the samples that leave at each exit.
        loss: Mean.
        cost: Mean, in the unit of :class:`Tried`.
    """

    thresholds: dict[int, float]
    shares: dict[int, float]
    loss: float
    cost: float


def choose(tried: Tried, allowed: float, most: int) -> Chosen:
    """The exits and thresholds of least mean cost whose mean loss is at most ``allowed``.

    For a price of the loss, one threshold after the other is set to its best value, given the others; exits that
    aren't worth their heads are left out. The price is found by halving.

    Args:
        tried: Of calibration samples.
        allowed: Mean loss, 0 or more.
        most: Exits at most.

    Returns:
        Without thresholds where no exit pays.
    """
    best = _outcome(tried, {})
    low, high = 0.0, 1.0
    while high < _STEEPEST and _at_price(tried, high, most).loss > allowed:
        low, high = high, 4 * high
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        found = _at_price(tried, price, most)
        if found.loss <= allowed:
            high = price
            best = min(best, found, key=lambda c: c.cost)
        else:
            low = price
    return min(best, _at_price(tried, high, most), key=lambda c: (c.loss > allowed, c.cost))


def _at_price(tried: Tried, price: float, most: int) -> Chosen:
    """The best exits where a loss of 1 costs as much as ``price``."""

    def worth(chosen: Chosen) -> float:
        return chosen.cost + price * chosen.loss

    kept = list(range(len(tried.heads)))
    now = _swept(tried, kept, price)
    while kept:
        without = {gone: _swept(tried, [e for e in kept if e != gone], price) for gone in kept}
        gone = min(kept, key=lambda e: worth(without[e]))
        if len(kept) <= most and worth(without[gone]) > worth(now):
            break
        now, kept = without[gone], [e for e in kept if e != gone]
    return now


def _swept(tried: Tried, kept: Sequence[int], price: float) -> Chosen:
    """Thresholds of some exits, each the best for the others."""
    thresholds = dict.fromkeys(kept, 2.0)
    for _ in range(_SWEEPS):
        before = dict(thresholds)
        for at in reversed(kept):
            thresholds[at] = _best(tried, thresholds, at, price)
        if thresholds == before:
            break
    return _outcome(tried, thresholds)


def _best(tried: Tried, thresholds: dict[int, float], at: int, price: float) -> float:
    """The threshold of one exit that costs least, the others being as they are."""
    earlier = [tried.confidence[e] >= t for e, t in thresholds.items() if e < at]
    reach = ~torch.stack(earlier).any(0) if earlier else torch.ones(tried.confidence.shape[1], dtype=torch.bool)
    if not reach.any():
        return 2.0
    cost, loss = _beyond(tried, {e: t for e, t in thresholds.items() if e > at}, sorted(thresholds), at)
    gain = (cost - _cost(tried, sorted(thresholds), at)) + price * (loss - tried.loss[at])
    sure, order = tried.confidence[at][reach].sort(descending=True)
    gains = gain[reach][order].cumsum(0)
    ends = torch.cat([sure[:-1] > sure[1:], torch.tensor([True])])  # equally sure samples leave together
    gains = torch.where(ends, gains, torch.full_like(gains, -torch.inf))
    last = int(gains.argmax())
    if gains[last] <= 0:
        return 2.0
    below = float(sure[last + 1]) if last + 1 < len(sure) else 0.0
    return (float(sure[last]) + below) / 2


def _beyond(tried: Tried, later: dict[int, float], kept: Sequence[int], at: int) -> tuple[Tensor, Tensor]:
    """Cost and loss of each sample if it doesn't leave at an exit: those of where it leaves then."""
    count = tried.confidence.shape[1]
    cost = torch.full((count,), _cost(tried, kept, len(tried.heads)))
    loss = torch.zeros(count)
    for e in sorted(later, reverse=True):
        leaves = tried.confidence[e] >= later[e]
        cost = torch.where(leaves, torch.tensor(_cost(tried, kept, e)), cost)
        loss = torch.where(leaves, tried.loss[e], loss)
    return cost, loss


def _cost(tried: Tried, kept: Sequence[int], at: int) -> float:
    """Until an exit, or the end, with the heads on the way."""
    return float(tried.body[at] + sum(tried.heads[e] for e in kept if e <= at))


def _outcome(tried: Tried, thresholds: dict[int, float]) -> Chosen:
    kept, count = sorted(thresholds), tried.confidence.shape[1]
    left = torch.ones(count, dtype=torch.bool)
    shares, loss, cost = dict[int, float](), 0.0, 0.0
    for e in kept:
        leaves = left & (tried.confidence[e] >= thresholds[e])
        shares[e] = float(leaves.float().mean())
        loss += float(tried.loss[e][leaves].sum()) / count
        cost += shares[e] * _cost(tried, kept, e)
        left &= ~leaves
    cost += float(left.float().mean()) * _cost(tried, kept, len(tried.heads))
    return Chosen(thresholds, shares, loss, cost)
