"""What candidates promise, from what was measured of them and of others so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compresskit.search.space import NONE, SAMPLES, Space
from compresskit.search.tried import Goal, area
from compresskit.searched import Rung, Tried

_RECOVERED, _FINER = 0.05, 0.25
"""Shares of the drop of a first look that are taken to be left after training, and after careful rounding."""
_LEARNS = 0.75
"""The drop is taken to fall with this power of the samples that were trained on."""
_KNOWN_BY_HEART = 3.0
"""Times the drop that a brief training of the original causes: what a long one is taken to cause at most."""
_SPREAD = 0.5
"""Of the logarithm of a predicted drop."""
_WORTH = 0.02
"""Chance of keeping the bars below which nothing is followed."""


@dataclass(frozen=True)
class Clock:
    """What the time is and what training takes.

    Attributes:
        total: Seconds of the whole search, earlier runs included.
        left: Seconds until the verdict begins.
        a_sample: Seconds that training takes for one sample; 0 where nothing is trained.
        samples: That an epoch has.
    """

    total: float
    left: float
    a_sample: float = 0.0
    samples: int = 0

    @property
    def share(self) -> float:
        """How much of the time is over."""
        return 1 - self.left / max(1e-9, self.total)


@dataclass
class Prospects:
    """What candidates promise.

    Attributes:
        space: What may be tried.
        goals: What is to be small.
        drop: The bar for the metric's drop in points; None where no metric is measured.
        known: What was tried, and what is being tried.
    """

    space: Space
    goals: Sequence[Goal]
    drop: float | None
    known: Sequence[Tried] = ()

    def forgotten(self) -> float:
        """Points that a brief training of the original loses; 0 where it isn't known, or could be chance."""
        for one in self.known:
            if one.rung == "brief" and not self.cut(one.values) and one.interval is not None:
                return max(0.0, one.drop or 0.0) if one.interval[0] > 0 else 0.0
        return 0.0

    def forgiven(self, values: Mapping[str, Any], rung: Rung, drop: float) -> float:
        """Points of a candidate's drop that training by itself may have caused.

        No more than the least that anything lost which was trained in full: what others lose beyond that is their own.
        """
        lost = self.forgotten()
        if not lost or not self.trained(values) or rung in ("look", "brief"):
            return 0.0
        drops = [one.drop or 0.0 for one in self.ended("trained", "whole") if self.trained(one.values)]
        return max(0.0, min([*drops, drop, _KNOWN_BY_HEART * lost]))

    def _of_trunk(self, values: Mapping[str, Any], drop: float) -> float:
        """The least drop of what ends otherwise but is trained the same."""
        mine = self.trained(values)
        same = [
            one.drop for one in self.known
            if one.drop is not None and one.rung in ("trained", "whole") and self.trained(one.values) == mine
        ]  # fmt: skip
        return min([*same, drop])

    def expected(self, values: Mapping[str, Any], rung: Rung, drop: float) -> float:
        """The drop to expect of what was only looked at, once it is followed to its end."""
        if rung == "look" and self.space.recovery(values):
            return _RECOVERED * max(0.0, drop)
        return self.finer(values, rung, drop)

    def ends(self, one: Tried) -> list[Tried]:
        """What a trunk could end as, by what each way to quantize does to the original alone."""
        bare = [other for other in self.ended("look", "whole") if not self.cut(other.values)]
        own = [other for other in bare if self._final_of(other.values) == self._final_of(one.values)]
        if not own:
            return [one]
        fits = [b for b in bare if self.finer(b.values, b.rung, b.drop or 0.0) <= (self.drop or 0.0)] or own
        smaller, faster = ((getattr(one, n) or 1.0) / (getattr(own[0], n) or 1.0) for n in ("smaller", "faster"))
        return [
            one.model_copy(update={"smaller": smaller * (b.smaller or 1.0), "faster": faster * (b.faster or 1.0)})
            for b in fits
        ]  # fmt: skip

    def _final_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        trunk = self.space.trunk(values)
        return {k: v for k, v in self.space.untrained(values).items() if k not in trunk}

    def trained_trunks(self) -> list[dict[str, Any]]:
        """What was trained in full, or is being trained, or can't be."""
        found: list[dict[str, Any]] = []
        for one in self.known:
            trunk = self.space.trunk(one.values)
            if one.rung in ("trained", "whole") and self.trained(one.values) and trunk not in found:
                found += [trunk] if one.state != "cut" else []
        return found

    def promise(self, one: Tried, drop: float, ends: Sequence[Tried] = ()) -> float:
        """The area that a candidate, or what it could end as, adds to the front, times the chance that it passes."""
        chance = 1.0
        if self.drop is not None:
            chance = 1 / (1 + (max(drop, 1e-3) / max(0.05, self.drop)) ** (1 / _SPREAD))
        if chance < _WORTH:
            return 0.0
        kept = [other for other in self.known if other.state == "kept"]
        return chance * (area([*kept, *(ends or [one])], self.goals) - area(kept, self.goals))

    def finer(self, values: Mapping[str, Any], rung: Rung, drop: float) -> float:
        """The drop to expect after careful rounding."""
        base = self._of_trunk(values, drop) if self.trained(values) else 0.0
        finer = _FINER if self.space.careful(values, 0) else 1.0
        return base - self.forgiven(values, rung, drop) + finer * (drop - base)

    def recovered(self, one: Tried, epochs: int, clock: Clock) -> float:
        """The drop to expect after training, by a brief training where there was one."""
        brief = self.briefed(one.values)
        if brief is not None:
            seen = self.samples(brief, clock)
            excess = max(0.0, (brief.drop or 0.0) - self.forgotten())
            # A final step that rounds costs what it cost in the look.
            return float(excess * (seen / max(seen, epochs * clock.samples)) ** _LEARNS)
        return self._rate(epochs, clock) * max(0.0, one.drop or 0.0)

    def _rate(self, epochs: int, clock: Clock) -> float:
        """Share of a look's drop that training leaves, as the brief trainings tell."""
        found = []
        for brief in self.ended("brief"):
            look = self.look(brief.values)
            if look is not None and (look.drop or 0.0) > 0 and self.cut(brief.values):
                found.append(self.recovered(look, epochs, clock) / (look.drop or 1.0))
        return sorted(found)[len(found) // 2] if found else _RECOVERED

    def samples(self, brief: Tried, clock: Clock) -> int:
        """That an epoch of it trained on."""
        return next((int(v) for k, v in brief.values.items() if k.endswith(f".{SAMPLES}")), clock.samples)

    def briefed(self, values: Mapping[str, Any]) -> Tried | None:
        """The brief training of what is cut the same."""
        trunk = self.space.trunk(values)
        return next((one for one in self.ended("brief") if self.space.trunk(one.values) == trunk), None)

    def look(self, values: Mapping[str, Any]) -> Tried | None:
        """The look with the least drop at what is cut the same."""
        trunk = self.space.trunk(values)
        looks = [one for one in self.ended("look") if self.space.trunk(one.values) == trunk]
        return min(looks, key=lambda one: one.drop or 0.0, default=None)

    def ended(self, *rungs: Rung) -> list[Tried]:
        """What was measured on some rungs."""
        return [one for one in self.known if one.rung in rungs and one.bytes is not None]

    def trained(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is trained, and for how long; empty where nothing is."""
        lengths = {key for key in self.space.lengths(values) if key in values}
        if not lengths:
            return {}
        return self.space.trunk(values) | {key: values[key] for key in lengths}

    def cut(self, values: Mapping[str, Any]) -> bool:
        """Whether something besides what recovers comes before the last step."""
        trunk = self.space.trunk(values)
        return any(trunk.get(name, NONE) != NONE and not self.space.recovers(name) for name in self.space.names())


def known_of(tried: Iterable[Tried], values: Mapping[str, Any], *rungs: Rung) -> bool:
    """Whether a candidate came to an end on one of some rungs, or is on its way there."""
    return any(one.values == values and one.rung in rungs and one.state != "cut" for one in tried)
