"""The search itself: which candidate next, how far it is followed, and when it is enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from compresskit.errors import CompressKitError
from compresskit.recipe.limits import Limits
from compresskit.search.policy import Policy, Wish, cut_off
from compresskit.search.prospects import Clock, known_of
from compresskit.search.space import LENGTH, Picker, Space
from compresskit.search.study import Outcome, SearchStudy
from compresskit.search.tried import Goal, costs
from compresskit.search.trying import Figures, OutOfTime, Trying
from compresskit.searched import STATES, Rung, Tried, tried_text

if TYPE_CHECKING:
    from optuna import Trial

_FAR = 8
"""Times that the best candidates miss a bar by, from which on further ones are not worth their time."""
_FEW = 4
"""Candidates that must be known before the search is given up."""
_AGAIN = 12
"""Candidates in a row that were known already, after which the space counts as searched."""


@dataclass(frozen=True)
class Bars:
    """What a candidate must keep, on the samples that the choice is made by.

    Attributes:
        limits: As the user gave them.
        drop: The largest drop in points of the metric; None where no metric is measured.
    """

    limits: Limits
    drop: float | None

    def missed(self, found: Figures, forgiven: float = 0.0) -> dict[str, float]:
        """By how much each bar is missed, as a share of it; 0 and below keep it.

        Args:
            found: What was measured.
            forgiven: Points of the drop that don't count.
        """
        missed: dict[str, float] = {}
        if self.drop is not None:
            missed["drop"] = (found.drop - forgiven - self.drop - 1e-9) / max(0.1, self.drop)
        if self.limits.max_bytes is not None:
            missed["size"] = found.bytes / self.limits.max_bytes - 1
        if self.limits.min_speedup is not None and found.faster is not None:
            missed["speed"] = self.limits.min_speedup / found.faster - 1
        return missed

    def close(self, tried: Sequence[Tried]) -> list[Tried]:
        """Candidates that were followed to their end and miss only the bar for quality, by no more than chance."""
        found = []
        for one in tried:
            if one.state != "missed" or one.interval is None or self.drop is None:
                continue
            figures = Figures(one.bytes or 0, one.faster, 0.0, one.interval[0], None)
            if max(self.missed(figures, one.forgiven).values()) <= 0:
                found.append(one)
        return found


@dataclass
class Searching:
    """One worker's part in a search.

    Attributes:
        trying: What tries candidates.
        space: What may be tried.
        study: The record.
        bars: What is to be kept.
        goals: What is to be small.
        deadline: By ``time.monotonic``; then the last candidate is given up.
        most: Candidates after which it ends; None is any number.
        tell: Shows a line.
        machine: The class of the machine, which goes with what is timed.
        over: Asked after each candidate, whether another worker ended the search.
        stopped: Why it ended.
        count: How many candidates this worker tried.
    """

    trying: Trying
    space: Space
    study: SearchStudy
    bars: Bars
    goals: Sequence[Goal]
    deadline: float
    most: int | None
    tell: Callable[[str], None]
    machine: str
    over: Callable[[], bool] = lambda: False
    stopped: str = ""
    count: int = 0
    _again: int = field(default=0, repr=False)

    def run(self) -> None:
        """Try candidates until time is over, or the space is searched.

        Raises:
            KeyboardInterrupt: Ctrl-C; all that was finished is in the study.
        """
        self._total = (self.study.attribute("seconds") or 0.0) + self.deadline - time.monotonic()
        self._a_pass = min(self.trying.seconds_a_pass.values(), default=0.0) if self.space.trains() else 0.0
        self._policy = Policy(self.space, self.goals, self.bars.drop)
        for values in cut_off(self.study.tried()):
            self.study.queue(Wish(values))
        self.study.run(self._try, stop=self._stop, wish=self._wish)

    def _stop(self) -> bool:
        tried = self.study.tried()
        if time.monotonic() >= self.deadline or self.over():
            self.stopped = "the time was over"
        elif self.most is not None and len(tried) >= self.most:
            self.stopped = f"{self.most} candidates were tried"
        elif self._again >= 2 * _AGAIN or (self._again >= _AGAIN and self._wish() is None):
            self.stopped = "no new candidate was found"
        elif self._hopeless(tried):
            self.stopped = "no candidate came near the limits"
        return bool(self.stopped)

    def _wish(self) -> Wish | None:
        """What is to be tried next; None is what the sampler proposes."""
        self._policy.known = [*self.study.tried(), *self.study.running()]
        return self._policy.next(self._clock(), exhausted=self._again >= _AGAIN)

    def _clock(self) -> Clock:
        left = max(0.0, self.deadline - time.monotonic())
        if self.most is not None:  # what is nearer to its end counts
            left = min(left, self._total * (1 - len(self._policy.known) / self.most))
        samples = 0 if self.trying.data is None else len(self.trying.data)
        clock = Clock(self._total, left, self._a_pass / max(1, samples), samples)
        return self._policy.measured(clock)

    def _hopeless(self, tried: Sequence[Tried]) -> bool:
        """Some were measured, and a size or speed that is asked for is far from everything that was found."""
        known = [one for one in tried if one.bytes is not None]
        if len(known) < _FEW:
            return False
        size, speed = self.bars.limits.max_bytes, self.bars.limits.min_speedup
        if size is not None and min(one.bytes or 0 for one in known) > _FAR * size:
            return True
        return speed is not None and max(one.faster or 0.0 for one in known) * _FAR < speed

    def _try(self, trial: Trial, wish: Wish | None) -> Outcome:
        start = time.monotonic()
        picked = self.space.untrained(self.space.pick(_Untrained(trial, self.space))) if wish is None else wish.values
        values: dict[str, Any] = dict(picked)
        rung: Rung = "look" if wish is None else wish.rung
        steps = self.space.steps(values, preview=rung != "whole", trained=rung != "look")
        if (rung == "trained" or not self.space.lengths(values)) and steps == self.space.steps(values):
            rung = "whole"  # there is no other form of it
        taken = self.study.taken(
            trial, values, rung
        )  # asked first: what ends in between is among those that were tried
        made = _Making(trial.number, values, steps, rung)
        if not steps or taken or known_of(self.study.tried(), values, rung):
            self._again += 1
            return Outcome(None, None, {})
        self._again = 0
        self.count += 1
        missed: dict[str, float] = {}
        try:
            if why := self._too_large(steps):
                tried = made.tried("dropped", why)
            else:
                tried, missed = self._judged(made, *self._measured(made.steps))
        except OutOfTime:
            tried = made.tried("cut", "the time was over before it finished")
        except CompressKitError as error:
            tried = made.tried("failed", error.message)
        tried = tried.model_copy(update={"seconds": round(time.monotonic() - start, 2)})
        self.tell(line(tried, self.deadline - time.monotonic()))
        return Outcome(tried, self._costs(tried) if wish is None else None, missed)

    def _too_large(self, steps: Sequence[dict[str, Any]]) -> str:
        """Why nothing of a candidate is computed: its size is known to miss the bar. Some are measured all the same."""
        most, least = self.bars.limits.max_bytes, 0
        if most is not None and sum(one.bytes is not None for one in self._policy.known) >= _FEW:
            least = self.trying.least_bytes(steps)
        if most is None or least <= most:
            return ""
        return f"it takes at least {least:,} bytes, more than the limit of {most:,}; it was not computed"

    def _costs(self, tried: Tried) -> tuple[float, ...] | None:
        """What is to be small; None of a candidate that was given up."""
        if tried.bytes is None:
            return None
        found = costs(tried, self.goals)
        # Without a metric there is no bar for quality: it is one more thing that is wanted.
        return found if self.bars.drop is not None else (*found, tried.drop or 0.0)

    def _measured(self, steps: Sequence[dict[str, Any]]) -> tuple[Figures, list[dict[str, Any]]]:
        """Figures, and the steps with explicit options."""
        recipe = self.trying.recipe(steps)
        at, taken = self.trying.take(recipe)
        return self.trying.measure(at), list(replace(recipe, steps=taken).document()["steps"])

    def _judged(self, made: _Making, figures: Figures, steps: list[dict[str, Any]]) -> tuple[Tried, dict[str, float]]:
        forgiven = self._policy.forgiven(made.values, made.rung, figures.drop)
        missed = self.bars.missed(figures, forgiven)
        state, reason = "missed", _why(missed)
        if max(missed.values(), default=0.0) <= 0:
            state = "kept"
        elif made.rung != "whole":
            state, reason = "looked", ""
            if why := self._given_up(missed):
                state, reason = "dropped", why
            elif self.bars.drop is not None:  # what the sampler learns: whether the next rungs can make up for it
                expected = self._policy.expected(made.values, made.rung, figures.drop)
                missed["drop"] = (expected - self.bars.drop) / max(0.1, self.bars.drop)
        tried = made.tried(state, reason, figures, self.trying.base, self.machine)
        update = {"steps": steps, "trained": _trains(steps), "forgiven": round(forgiven, 4)}
        return tried.model_copy(update=update), missed

    def _given_up(self, missed: dict[str, float]) -> str:
        """Why a candidate isn't followed further; empty where it is. Training makes nothing smaller or faster."""
        if missed.get("size", 0.0) > 0.02:
            return "it exceeds the size limit, which training does not change"
        if missed.get("speed", 0.0) > 0.1:
            return "it misses the speed limit, which training does not change"
        return ""


@dataclass
class _Untrained:
    """Asks a trial, but neither how to train nor, where something is to be trained, how to quantize afterwards.

    The first look doesn't train. Later the time decides for how long, and all ways to quantize are tried on the result.

    Attributes:
        trial: Is asked all else.
        space: Where the questions come from.
        recovers: Something is to be trained.
    """

    trial: Picker
    space: Space
    recovers: bool = False

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """See :class:`Picker`."""
        if (method := self.space.recovers(name)) in choices:
            self.recovers = True
            return method
        if self.recovers and name == self.space.names()[-1] and (final := self.space.quickest_final()) in choices:
            return final
        return self.trial.suggest_categorical(name, choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """See :class:`Picker`."""
        return low if name.endswith(f".{LENGTH}") else self.trial.suggest_int(name, low, high, step=step, log=log)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """See :class:`Picker`."""
        return self.trial.suggest_float(name, low, high, step=step, log=log)


@dataclass(frozen=True)
class _Making:
    number: int
    values: dict[str, Any]
    steps: list[dict[str, Any]]
    rung: Rung

    def tried(
        self, state: Any, reason: str = "", figures: Figures | None = None, base: Figures | None = None,
        machine: str = "",
    ) -> Tried:  # fmt: skip
        """For the record."""
        known: dict[str, Any] = {}
        if figures is not None and base is not None:
            known = {
                "bytes": figures.bytes,
                "smaller": round(base.bytes / max(1, figures.bytes), 4),
                "faster": None if figures.faster is None else round(figures.faster, 4),
                "timed_on": machine if figures.faster is not None else "",
                "value": figures.value,
                "drop": figures.drop,
                "interval": figures.interval,
            }
        return Tried(
            number=self.number, steps=self.steps, values=self.values, state=state, rung=self.rung, reason=reason,
            trained=_trains(self.steps), **known,
        )  # fmt: skip


def _trains(steps: Sequence[dict[str, Any]]) -> bool:
    return any(options.get("epochs") for step in steps for options in step.values() if isinstance(options, dict))


def _why(missed: dict[str, float]) -> str:
    worst = {name: by for name, by in missed.items() if by > 0}
    return "misses the limit for " + " and ".join(worst) if worst else ""


def line(tried: Tried, left: float) -> str:
    """One candidate in a line, for the terminal."""
    figures = []
    if tried.smaller is not None:
        figures.append(f"{tried.smaller:.1f}× smaller")
    if tried.faster is not None:
        figures.append(f"about {tried.faster:.1f}× as fast")
    if tried.drop is not None:
        figures.append(f"{0 - tried.drop:+.2f} pt")
    why = f" ({tried.reason})" if tried.reason and tried.state in ("dropped", "cut", "failed") else ""
    minutes = f"{max(0, int(left)) // 60}:{max(0, int(left)) % 60:02d} left"
    measured = ", ".join(figures) or "nothing measured"
    return f"candidate {tried.number}: {tried_text(tried)}: {measured}; {STATES[tried.state]}{why}; {minutes}"


def epochs_that_fit(seconds: float, a_pass: float) -> float:
    """How many epochs a candidate may train: a third of all time."""
    return math.inf if a_pass <= 0 else seconds / 3 / a_pass
