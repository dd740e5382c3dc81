"""How narrow each group becomes, so that a target is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from compresskit.ops.prune.cost import Cost
from compresskit.ops.prune.graph import Group

_STEPS = 40
_MOST = 64
"""Widths of one group."""
_AHEAD = 3
"""Widths below the present one that are looked at: a step that costs much may lead to one that costs nothing more."""
_EPSILON = 1e-12


@dataclass(frozen=True)
class Ranked:
    """A group with its units in the order in which they should go.

    Attributes:
        group: The group.
        order: Its units, the first to go first.
        scores: Of the units in that order, 0 or more, rising: what each is worth.
    """

    group: Group
    order: Sequence[int]
    scores: Sequence[float]

    def lost(self, multiple: int) -> dict[int, float]:
        """By width what the units are worth that go, relative to the mean of all."""
        mean = sum(self.scores) / len(self.scores) or 1.0
        widths = widths_of(self.group, multiple)
        return {w: sum(self.scores[: self.group.units - w]) / mean for w in widths}

    def kept(self, width: int) -> list[int]:
        """The units that stay at a width, ascending."""
        return sorted(self.order[len(self.order) - width :])


def widths_of(group: Group, multiple: int) -> list[int]:
    """The numbers of units that a group may have, from whole to narrowest.

    Args:
        group: The group.
        multiple: Channels of the first layer come in multiples of this; a group that is narrower, or that no other
            multiple fits into, stays whole. Never to zero. Very wide groups take larger steps.
    """
    step = math.lcm(multiple, group.per_unit) // group.per_unit
    step *= max(1, math.ceil(group.units / step / _MOST))
    below = (group.units - 1) // step * step
    return [group.units, *range(below, 0, -step)]


def by_share(ranked: Sequence[Ranked], classes: Mapping[str, object], multiple: int, share: float) -> dict[str, int]:
    """Widths when the same share of each class goes, those with the lowest scores of the class first.

    Scores are compared relative to their mean in the group. Widths are rounded up.

    Args:
        ranked: The groups.
        classes: Group name to its class: one for all (global), by structure (isomorphic), one each (uniform).
        multiple: See :func:`widths_of`.
        share: Of the channels, 0 to 1.
    """
    found: dict[str, int] = {}
    for kind in dict.fromkeys(classes.values()):
        mates = [r for r in ranked if classes[r.group.name] == kind]
        lost = _lowest(mates, share)
        for r in mates:
            wanted = r.group.units - lost[r.group.name]
            found[r.group.name] = min(w for w in widths_of(r.group, multiple) if w >= wanted or w == r.group.units)
    return found


def _lowest(mates: Sequence[Ranked], share: float) -> dict[str, int]:
    """How many units each group loses when a share of all their channels goes."""
    scored = []
    for r in mates:
        mean = sum(r.scores) / len(r.scores) or 1.0
        scored += [(s / mean, r.group.name, i, r.group.per_unit) for i, s in enumerate(r.scores)]
    budget = share * sum(per for *_, per in scored)
    lost = {r.group.name: 0 for r in mates}
    for _, name, _, per in sorted(scored):
        budget -= per
        if budget < -_EPSILON:
            break
        lost[name] += 1
    return lost


def isomorphic(module: nn.Module, group: Group) -> tuple[tuple[str, str], ...]:
    """What groups of the same structure have in common: kinds and sides of their layers.

    "Isomorphic Pruning for Vision Models" (Fang et al., 2024) compares importance only among such groups.
    """
    return tuple(sorted((type(module.get_submodule(m.layer)).__name__, m.axis) for m in group.members))


def narrowest_share(
    widths: Callable[[float], dict[str, int]], cost: Cost, target: float
) -> tuple[dict[str, int], float]:
    """The widths that meet a target with the smallest share cut, and what they cost; the narrowest where none does.

    Args:
        widths: From a share of channels to widths; more share, narrower.
        cost: What is to be at most ``target``.
        target: Share of the original's.
    """
    low, high = 0.0, 1.0
    if cost.share(widths(high)) > target + _EPSILON:
        return widths(high), cost.share(widths(high))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if cost.share(widths(middle)) <= target + _EPSILON:
            high = middle
        else:
            low = middle
    return widths(high), cost.share(widths(high))


class Shares(Protocol):
    """What a model costs at some widths, as a share of what it cost before."""

    def share(self, widths: Mapping[str, int], /) -> float:
        """1 for the model as it was."""
        ...


def by_loss(
    allowed: Mapping[str, Sequence[int]],
    losses: Mapping[str, Mapping[int, float]],
    cost: Shares,
    target: float,
    *,
    ahead: int = _AHEAD,
) -> tuple[dict[str, int], float]:
    """Widths that meet a target with a small sum of losses, and what they cost; the narrowest where none does.

    Again and again the group gives way whose loss is smallest for what it saves; in the end what turns out not to be
    needed is taken back, the dearest first.

    Args:
        allowed: Group name to its widths, from whole to narrowest.
        losses: Group name and width to what is lost at it, 0 for the whole group.
        cost: What is to be at most ``target``.
        target: Share of the original's.
        ahead: Widths below the present one that are looked at.
    """
    now = {name: max(widths) for name, widths in allowed.items()}
    share = cost.share(now)
    while share > target + _EPSILON:
        best: tuple[float, str, int, float] | None = None
        for name, width in now.items():
            for narrower in [w for w in allowed[name] if w < width][:ahead]:
                after = cost.share({**now, name: narrower})
                saved = share - max(after, target)
                lost = max(0.0, losses[name][narrower] - losses[name][width]) + _EPSILON
                if after < share and (best is None or lost / saved < best[0]):
                    best = (lost / saved, name, narrower, after)
        if best is None:
            break
        _, name, now[name], share = best
    return taken_back(now, losses, cost, target)


def taken_back(
    now: dict[str, int], losses: Mapping[str, Mapping[int, float]], cost: Shares, target: float
) -> tuple[dict[str, int], float]:
    """Widths with those cuts taken back that a target doesn't need, the dearest first, and what they cost.

    Args:
        now: Widths that meet the target, or the narrowest.
        losses: Group name and each width it may have to what is lost at it.
        cost: What is to be at most ``target``.
        target: Share of the original's.
    """
    while True:
        wider = [
            (losses[name][width] - losses[name][w], -w, name)
            for name, width in now.items()
            for w in losses[name]
            if w > width and cost.share({**now, name: w}) <= target + _EPSILON
        ]
        gain, width, name = max(wider, default=(0.0, 0, ""))
        if not name or gain <= 0:
            return now, cost.share(now)
        now = {**now, name: -width}
