"""What each step of a recipe costs, measured as soon as it was taken, and whether that undoes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compresskit.quality.drop import parse_drop, within
from compresskit.recipe.limits import DEFAULT_DROP
from compresskit.recipe.plan import Step
from compresskit.report import Gate, StepEntry
from compresskit.runner.cache import Cache
from compresskit.runner.entries import At, bytes_of
from compresskit.runner.keys import code_of, digest
from compresskit.runner.measure import score
from compresskit.runner.steps import Job

_UNMEASURED = "its cost is unknown because no metric was measured: give `eval_data`"


class StepCosts:
    """Judges the steps of a run.

    Attributes:
        entries: What each step did, for the report.
        gates: Of steps that have a limit and were not undone.
    """

    def __init__(self, job: Job, against: At, surroundings: dict[str, Any], cache: Cache) -> None:
        """Nothing was taken yet.

        Args:
            job: What is run.
            against: What the result is compared with.
            surroundings: What figures may depend on.
            cache: Where they are remembered.
        """
        self.entries: list[StepEntry] = []
        self.gates: list[Gate] = []
        self._job, self._against, self._surroundings, self._cache = job, against, surroundings, cache
        source = job.measuring.source
        self._evaluated = None if source is None else source.fingerprint()

    def stays(self, place: int, step: Step, before: At, at: At) -> bool:
        """Measure a step, and say whether it stays; see :class:`compresskit.runner.steps.Steps`."""
        name = step.stage.name()
        entry, passed = self._cost(step, before, at)
        named = ", ".join(n for n in at.stages if n != name)
        state = "cached" if at.known else "done"
        entry = entry.model_copy(update={"name": f"{name} ({named})" if named else name, "state": state})
        undone = passed is False and step.rollback
        if passed is None and (step.rollback or step.max_drop is not None):
            entry = entry.model_copy(update={"reason": _UNMEASURED})
            self._job.tell(f"step {place + 1}: kept, {entry.reason}")
        if undone:
            entry = entry.model_copy(update={"state": "undone"})
            self._job.tell(f"step {place + 1}: undone, {entry.reason}")
        elif step.max_drop is not None:
            self.gates.append(_gate(place, entry, step.max_drop, passed))
        self.entries.append(entry)
        return not undone

    def _cost(self, step: Step, before: At, at: At) -> tuple[StepEntry, bool | None]:
        """What a step did, and whether it keeps its limit; None where nothing was measured."""
        entry = StepEntry(name="", state="done", bytes=bytes_of(at.ready))
        old, new = self._figure(before), self._figure(at)
        if old is None or new is None:
            return entry, None
        limit, against = step.max_drop, old
        if limit is None:
            limit, first = self._job.measuring.limits.max_drop or DEFAULT_DROP, self._figure(self._against)
            against = first if first is not None else old
        parsed = parse_drop(limit)
        passed, lost = within(parsed, against["value"], new["value"], new["higher"])
        drop = (old["value"] - new["value"]) * (1 if new["higher"] else -1)
        places = f"{against['value']:.3f} → {new['value']:.3f}, {lost:+.3f} lost of {parsed} allowed"
        update = {"metric": new["metric"], "value": new["value"], "drop": drop, "reason": "" if passed else places}
        return entry.model_copy(update=update), passed

    def _figure(self, at: At) -> dict[str, Any] | None:
        """The metric of a model on the evaluation data; the same on every run, so it is remembered."""
        measuring = self._job.measuring
        if measuring.source is None or at.ready.shipped is None:
            return None
        target, metric = measuring.target or at.target, measuring.metric
        key = digest(
            "figure", at.key, self._evaluated, metric, code_of(metric), target, self._surroundings,
            measuring.device,
        )  # fmt: skip
        if (known := self._cache.recall(key)) is None:
            candidate = at.ready.candidate("step", "step", replace(measuring, target=target))
            chosen, found = score(candidate, measuring.source, metric, progress=self._job.progress)
            known = {}
            if chosen is not None and found is not None:
                known = {"metric": chosen.name, "value": found.value, "higher": chosen.higher_is_better}
            self._cache.remember(key, known)
        return known or None


def _gate(place: int, entry: StepEntry, limit: str, passed: bool | None) -> Gate:
    name = f"step {place + 1}, {entry.name}: {entry.metric or 'quality'} drop"
    return Gate(
        name=name, limit=f"≤ {parse_drop(limit)}", value=entry.drop, unit="pt", passed=passed, asked=True,
        reason=entry.reason,
    )  # fmt: skip
