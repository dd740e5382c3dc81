"""The search itself: which candidate next, how far it is followed, and when it is enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from compresskit.errors import CompressKitError
from compresskit.recipe.limits import Limits
from compresskit.search.space import Space, assignments
from compresskit.search.study import Outcome, SearchStudy
from compresskit.search.tried import Goal, costs, dominates, front
from compresskit.search.trying import Figures, OutOfTime, Trying
from compresskit.searched import STATES, Tried, steps_text

if TYPE_CHECKING:
    from optuna import Trial

_CLOSE = 1.03
"""Times of a call whose ratio is below this are not told apart by a short look."""
_FAR = 8
"""Times that the best candidates miss a bar by, from which on further ones are not worth their time."""
_FEW = 4
"""Candidates that must be known before one is given up for being among the worse."""
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

    def missed(self, found: Figures) -> dict[str, float]:
        """By how much each bar is missed, as a share of it; 0 and below keep it."""
        missed: dict[str, float] = {}
        if self.drop is not None:
            missed["drop"] = (found.drop - self.drop - 1e-9) / max(0.1, self.drop)
        if self.limits.max_bytes is not None:
            missed["size"] = found.bytes / self.limits.max_bytes - 1
        if self.limits.min_speedup is not None and found.faster is not None:
            missed["speed"] = self.limits.min_speedup / found.faster - 1
        return missed


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
        for values in assignments(self.space):
            self.study.queue(values)
        self.study.run(self._try, stop=self._stop)

    def _stop(self) -> bool:
        tried = self.study.tried()
        if time.monotonic() >= self.deadline or self.over():
            self.stopped = "the time was over"
        elif self.most is not None and len(tried) >= self.most:
            self.stopped = f"{self.most} candidates were tried"
        elif self._again >= _AGAIN:
            self.stopped = "no new candidate was found"
        elif self._hopeless(tried):
            self.stopped = "no candidate came near the limits"
        return bool(self.stopped)

    def _hopeless(self, tried: Sequence[Tried]) -> bool:
        """Some were measured, and a size or speed that is asked for is far from everything that was found."""
        known = [one for one in tried if one.bytes is not None]
        if len(known) < _FEW:
            return False
        size, speed = self.bars.limits.max_bytes, self.bars.limits.min_speedup
        if size is not None and min(one.bytes or 0 for one in known) > _FAR * size:
            return True
        return speed is not None and max(one.faster or 0.0 for one in known) * _FAR < speed

    def _try(self, trial: Trial) -> Outcome:
        start = time.monotonic()
        values = self.space.pick(trial)
        steps = self.space.steps(values)
        taken = self.study.taken(trial)  # asked first: what ends in between is among those that were tried
        known = self.study.tried()
        made = _Making(trial.number, values, steps)
        same = next((one for one in known if one.values == values and one.bytes is not None), None)
        if same is not None or not steps or taken:
            self._again += 1
            return Outcome(None, None, {})
        self._again = 0
        self.count += 1
        try:
            tried, missed = self._followed(made, known)
        except OutOfTime:
            tried, missed = made.tried("dropped", "the time was over before it finished"), {}
        except CompressKitError as error:
            tried, missed = made.tried("failed", error.message), {}
        tried = tried.model_copy(update={"seconds": round(time.monotonic() - start, 2)})
        self.tell(line(tried, self.deadline - time.monotonic()))
        return Outcome(tried, self._costs(tried), missed)

    def _costs(self, tried: Tried) -> tuple[float, ...] | None:
        """What is to be small; None of a candidate that was given up."""
        if tried.state not in ("kept", "missed"):
            return None
        found = costs(tried, self.goals)
        # Without a metric there is no bar for quality: it is one more thing that is wanted.
        return found if self.bars.drop is not None else (*found, tried.drop or 0.0)

    def _followed(self, made: _Making, known: Sequence[Tried]) -> tuple[Tried, dict[str, float]]:
        """A candidate as far as it is worth it, and by how much it misses: a cheap look first, where there is one."""
        preview = self.space.steps(made.values, preview=True)
        if preview and preview != made.steps:
            figures, steps = self._measured(preview)
            missed = self.bars.missed(figures)
            if self.bars.drop is not None and max(missed.values()) <= 0:
                return self._judged(made, figures, steps)  # as cheap as it is, it keeps the bars
            if why := self._given_up(figures, missed, known):
                tried = made.tried("dropped", why, figures, self.trying.base, self.machine)
                return tried.model_copy(update={"steps": steps, "trained": _trains(steps)}), missed
        return self._judged(made, *self._measured(made.steps))

    def _measured(self, steps: Sequence[dict[str, Any]]) -> tuple[Figures, list[dict[str, Any]]]:
        """Figures, and the steps with explicit options."""
        recipe = self.trying.recipe(steps)
        at, taken = self.trying.take(recipe)
        return self.trying.measure(at), list(replace(recipe, steps=taken).document()["steps"])

    def _judged(self, made: _Making, figures: Figures, steps: list[dict[str, Any]]) -> tuple[Tried, dict[str, float]]:
        missed = self.bars.missed(figures)
        kept = max(missed.values(), default=0.0) <= 0
        tried = made.tried("kept" if kept else "missed", _why(missed), figures, self.trying.base, self.machine)
        return tried.model_copy(update={"steps": steps, "trained": _trains(steps)}), missed

    def _given_up(self, figures: Figures, missed: dict[str, float], known: Sequence[Tried]) -> str:
        """Why a candidate isn't followed further; empty where it is. Training makes nothing smaller or faster."""
        if missed.get("size", 0.0) > 0.02:
            return "it exceeds the size limit, which training does not change"
        if missed.get("speed", 0.0) > 0.1:
            return "it misses the speed limit, which training does not change"
        base = self.trying.base
        ratios = {"size": base.bytes / max(1, figures.bytes), "latency": figures.faster or 1.0}
        mine = tuple(-math.log(ratios[goal]) for goal in self.goals)
        if self.bars.drop is not None:
            slack = tuple(math.log(_CLOSE) if goal == "latency" else 0.0 for goal in self.goals)
            for one in front(known, self.goals):
                theirs = zip(costs(one, self.goals), slack, mine, strict=True)
                if all(cost - near <= own for cost, near, own in theirs):
                    words = " and not ".join({"size": "smaller", "latency": "faster"}[goal] for goal in self.goals)
                    return f"it is not {words} than candidate {one.number}, which passes"
        looked = [(*costs(one, self.goals), one.drop) for one in known if one.drop is not None]
        better = sum(dominates(other, (*mine, figures.drop)) for other in looked)
        if len(looked) >= _FEW and better > len(looked) / 3:
            return f"{better} of {len(looked)} other candidates are better in every figure after the preview"
        return ""


@dataclass(frozen=True)
class _Making:
    number: int
    values: dict[str, Any]
    steps: list[dict[str, Any]]

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
            number=self.number, steps=self.steps, values=self.values, state=state, reason=reason,
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
    why = f" ({tried.reason})" if tried.reason and tried.state in ("dropped", "failed") else ""
    minutes = f"{max(0, int(left)) // 60}:{max(0, int(left)) % 60:02d} left"
    measured = ", ".join(figures) or "nothing measured"
    return f"candidate {tried.number}: {steps_text(tried.steps)}: {measured}; {STATES[tried.state]}{why}; {minutes}"


def epochs_that_fit(seconds: float, a_pass: float) -> float:
    """How many epochs a candidate may train: a third of all time."""
    return math.inf if a_pass <= 0 else seconds / 3 / a_pass
