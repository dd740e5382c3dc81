"""What is tried next: many cheap looks, brief trainings of the promising ones, and the time that is left on the best.

Successive halving (Jamieson & Talwalkar, 2016) over time: each rung costs a share of the time, whatever
a candidate takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any, TypeVar

from compresskit.search.prospects import Clock, Prospects, known_of
from compresskit.search.space import LENGTH, SAMPLES, assignments
from compresskit.searched import Rung, Tried

T = TypeVar("T")
LOOKS, BRIEFS = 0.25, 0.45
"""Shares of the time after which no looks, and no brief trainings, are begun as long as something promises more."""
_BRIEF = 0.03
"""Share of the time that one brief training may take."""
_LEAST_SAMPLES = 1000
"""Of a brief training: fewer teach nothing."""
_MOST_BRIEFS = 6
_ENOUGH = 10
"""Epochs beyond which the time is better spent on a second candidate."""
_SLOWER = 6.0
"""Times as long as the quick careful form takes that must be left for the slow one."""
_SAFE = 0.85
"""Share of the time for training that is planned: what is cut off is lost."""


@dataclass(frozen=True)
class Wish:
    """What is to be tried.

    Attributes:
        values: Of a candidate, as a space picks them.
        rung: How far it is followed.
    """

    values: Mapping[str, Any]
    rung: Rung = "look"

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return {"values": dict(self.values), "rung": self.rung}

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Wish:
        """From the record."""
        return cls(found["values"], found["rung"])


@dataclass
class Policy(Prospects):
    """Decides what to try next."""

    _queue: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self._queue = [self.space.untrained(values) for values in assignments(self.space)]

    def next(self, clock: Clock, *, exhausted: bool = False) -> Wish | None:
        """What to try next; None is a first look at what the sampler proposes.

        Args:
            clock: The time.
            exhausted: The sampler finds nothing new any more.
        """
        first = next((values for values in self._queue if not known_of(self.known, values, "look", "whole")), None)
        if clock.share < LOOKS and (first is not None or not exhausted):
            return None if first is None else Wish(first)
        ways = (
            self._final,
            partial(self._careful, clock, trained=False, most=1),
            partial(self._brief, clock),
            partial(self._careful, clock, trained=True, most=len(self.trained_trunks())),
            partial(self._whole, clock),
            partial(self._careful, clock, trained=None),
            partial(self._slow, clock),
        )
        found = next((wish for way in ways if (wish := way()) is not None), None)
        return found if found is not None or first is None else Wish(first)

    def measured(self, clock: Clock) -> Clock:
        """The time, with what training takes here, where something was trained."""
        found = []
        for one in self.ended("brief", "trained", "whole"):
            passes = max(
                (int(one.values[key]) for key in self.space.lengths(one.values) if key in one.values), default=0
            )
            seen = passes * self.samples(one, clock)
            if seen and one.seconds / seen > clock.a_sample / 8:  # the others came from the cache
                found.append(one.seconds / seen)
        return replace(clock, a_sample=median(found)) if found and clock.a_sample else clock

    def _final(self) -> Wish | None:
        """Another way to quantize what was trained in full: it takes no training."""
        for one in self.ended("trained", "whole"):
            trunk = self.trained(one.values)
            for final in self.space.finals() if trunk and not self._missed(one) else ():
                if not known_of(self.known, trunk | final, "trained", "whole"):
                    return Wish(trunk | final, "trained")
        return None

    def _careful(self, clock: Clock, *, trained: bool | None, most: int = 10**6) -> Wish | None:
        """The careful form of what was only looked at.

        Args:
            clock: The time.
            trained: Only of what was, or wasn't, trained in full.
            most: So many at most.
        """
        done = [
            one for one in self.known if one.rung == "whole" and _has(one.values, self.space.careful(one.values, 0))
        ]
        took = max((one.seconds for one in done), default=0.0)
        if took > clock.left or sum(trained in (None, bool(self.trained(one.values))) for one in done) >= most:
            return None
        found: list[tuple[float, Wish]] = []
        for one in self.ended("look", "trained"):
            if trained not in (None, one.rung == "trained") or (one.rung == "look" and self.space.lengths(one.values)):
                continue  # what was cut is to be trained first
            form = one.values | self.space.careful(one.values, 0)
            if form != one.values and not known_of(self.known, form, "whole") and not self._missed(one):
                drop = self.finer(one.values, one.rung, one.drop or 0.0)
                found.append((self.promise(one, drop), Wish(form, "whole")))
        return _best(found)

    def _missed(self, one: Tried) -> bool:
        """Whether what was trained the same and looked better, or the same, missed the bars in its careful form."""
        trained = self.trained(one.values)
        for other in self.ended("whole"):
            if other.state == "missed" and self.trained(other.values) == trained:
                careful = self.space.careful(other.values, 0)
                plain = {key: value for key, value in other.values.items() if key not in careful}
                looks = [look.drop or 0.0 for look in self.ended("look", "trained") if look.values == plain]
                if min([*looks, other.drop or 0.0] if not careful else looks, default=0.0) <= (one.drop or 0.0):
                    return True
        return False

    def _slow(self, clock: Clock) -> Wish | None:
        """The slow form of what missed the bar for quality in its quick careful form, where there is time for that."""
        found: list[tuple[float, Wish]] = []
        for one in self.ended("whole"):
            form = one.values | self.space.careful(one.values, 1)
            if one.state != "missed" or form == one.values or _SLOWER * one.seconds > clock.left:
                continue
            if not known_of(self.known, form, "whole"):
                found.append((self.promise(one, (one.drop or 0.0) - one.forgiven), Wish(form, "whole")))
        return _best(found)

    def _brief(self, clock: Clock) -> Wish | None:
        """A brief training of what promises most, unless it had one already; of the original before all others."""
        best = self._best_trunk(clock)
        most = _MOST_BRIEFS * (1 + len(self.trained_trunks()))
        over = clock.share >= BRIEFS and self._epochs(clock) < _ENOUGH
        if best is None or self.briefed(best.values) or over or len(self.ended("brief")) > most:
            return None
        if not (lengths := self.space.recovery(best.values)) or not clock.a_sample:
            return None
        count = min(clock.samples, max(_LEAST_SAMPLES, int(_BRIEF * clock.total / clock.a_sample)))
        more: dict[str, Any] = dict.fromkeys(lengths, 1)
        more |= {key[: -len(LENGTH)] + SAMPLES: count for key in lengths} if count < clock.samples else {}
        if not any(one.rung == "brief" and not self.cut(one.values) for one in self.known):
            return Wish(self._alone(best.values) | more, "brief")
        return Wish(self.space.untrained(best.values) | more, "brief")

    def _whole(self, clock: Clock) -> Wish | None:
        """Training of the best for as many epochs as the time allows."""
        best = self._best_trunk(clock, briefed=clock.share >= BRIEFS)
        if best is None or not clock.a_sample:
            return None
        epochs, lengths = self._epochs(clock), self.space.lengths(best.values)
        earlier = [int(v) for one in self.ended("trained") for k, v in one.values.items() if k.endswith(f".{LENGTH}")]
        if epochs < max([1.0, *(0.5 * count for count in earlier)]):
            return None
        fitted = {key: max(int(found.low), min(epochs, int(found.high))) for key, found in lengths.items()}
        mildest = self.look(best.values) or best  # nothing is rounded more than it must be: that comes afterwards
        return Wish(self.space.untrained(mildest.values) | fitted, "trained")

    def _alone(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of a candidate only what recovers: it trains the original."""
        names = {key[: -len(LENGTH) - 1] for key in self.space.recovery(values)}
        return {key: value for key, value in values.items() if value in names}

    def _epochs(self, clock: Clock) -> int:
        """How many epochs fit beside the careful rounding that follows; two candidates share the time for many."""
        careful = [one.seconds for one in self.ended("whole") if self.space.careful(one.values, 0)]
        looks = [one.seconds for one in self.ended("look")]
        spare = 2 * max(careful, default=0.0) + len(self.space.finals()) * (sum(looks) / len(looks) if looks else 0.0)
        time = _SAFE * (clock.left - min(spare, 0.4 * clock.left))
        fit = int(time / max(1e-9, clock.a_sample * clock.samples))
        return fit if fit < 2 * _ENOUGH else max(_ENOUGH, fit // 2)

    def _best_trunk(self, clock: Clock, *, briefed: bool = False) -> Tried | None:
        """The look that promises most after training, of what wasn't trained in full.

        Args:
            clock: The time.
            briefed: Only of what was trained briefly, if anything was.
        """
        found: list[tuple[float, Tried]] = []
        epochs, whole = self._epochs(clock), self.trained_trunks()
        briefs = [t for one in self.ended("brief") if (t := self.space.trunk(one.values)) not in whole]
        briefs = [trunk for trunk in briefs if self.cut(trunk)]
        failed = [self.space.trunk(one.values) for one in self.known if one.rung == "brief" and one.bytes is None]
        for one in self.ended("look"):
            trunk = self.space.trunk(one.values)
            if not self.space.lengths(one.values) or not self.cut(one.values) or trunk in whole or trunk in failed:
                continue
            if not briefed or not briefs or trunk in briefs:
                ends = self.ends(one)
                found.append((self.promise(one, self.recovered(one, epochs, clock), ends), one))
        return _best(found)


def cut_off(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    """First looks that the end of an earlier run cut off, which are to be had again."""
    found = [one.values for one in tried if one.state == "cut" and one.rung == "look"]
    return [values for values in found if not known_of(tried, values, "look", "whole")]


def _has(values: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    return bool(options) and options.keys() <= values.keys()


def _best(found: Sequence[tuple[float, T]]) -> T | None:
    """What promises most; None where nothing promises anything."""
    promised = max((promise for promise, _ in found), default=0.0)
    return next((one for promise, one in found if promise == promised), None) if promised > 0 else None
