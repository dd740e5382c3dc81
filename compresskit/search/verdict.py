"""The best candidates on the evaluation data: measured once, all in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compresskit.benchmark.plan import Plan
from compresskit.quality.intervals import Z
from compresskit.report import Gate
from compresskit.runner.gates import gates
from compresskit.runner.judging import Measuring, ReportBuilder
from compresskit.runner.measured import Measured
from compresskit.search.request import Request
from compresskit.search.trying import Trying
from compresskit.searched import Judged, Tried
from compresskit.stage import Progress

_MOST, _FEWEST = 8, 2
"""Candidates that are measured on the evaluation data."""
_WISHED = 4
"""Candidates for whose measurement time is kept."""
_MOST_SHARE, _LEAST_S = 0.3, 10.0
"""Share of the time that is kept for the verdict at most, and the seconds that are kept at least."""
_PROCESS_S = 1.0
"""Seconds that a process of the bench takes besides the turns: to start, to open the model, and to warm up."""


@dataclass(frozen=True)
class Cost:
    """What the verdict takes.

    Attributes:
        a_model: Seconds to measure one model, the original included.
    """

    a_model: float

    @classmethod
    def of(cls, request: Request, trying: Trying) -> Cost:
        """Expected from what the original took on the samples for selection."""
        source = trying.evaluation()
        samples = trying.samples if source is None else len(source)
        quality = trying.seconds_to_score / max(1, trying.samples) * samples
        plan = Plan()
        turns = plan.rounds * max(plan.turn_s, trying.seconds_a_call)
        return cls(quality + (plan.processes * (_PROCESS_S + turns) if request.bench else 0.0))

    def reserve(self, seconds: float) -> float:
        """How much of the time of a search is kept for the verdict."""
        least = min(_LEAST_S, seconds / 3)
        return max(least, min((1 + _WISHED) * self.a_model, _MOST_SHARE * seconds))

    def count(self, seconds: float) -> int:
        """How many candidates can be measured in some time; a few are measured whatever the time."""
        return max(_FEWEST, min(_MOST, int(seconds / max(1e-9, self.a_model)) - 1))


@dataclass(frozen=True)
class Verdicts:
    """What was measured of candidates on the evaluation data.

    Attributes:
        judged: One for each candidate.
        builder: Measured them, the original first.
    """

    judged: list[Judged]
    builder: ReportBuilder

    def of(self, place: int) -> Measured | None:
        """The figures of the original and of one candidate; None where quality wasn't measured."""
        builder = self.builder
        if builder.measured is None:
            return None
        names = [model.name for model in builder.models]
        return Measured(
            names[0], names[1 + place], builder.measured, builder.timed if builder.timed.measurements else None
        )  # fmt: skip


def judge(request: Request, trying: Trying, wanted: Sequence[Tried], progress: Progress) -> Verdicts:
    """Measure candidates on the evaluation data, once, all in turns."""
    measuring = Measuring(
        metric=request.recipe.metric, limits=request.limits, sequence=request.recipe.sequence,
        threads=request.recipe.threads, device=request.recipe.device, seed=request.recipe.seed,
    )  # fmt: skip
    models = [trying.original_candidate("original")]
    for one in wanted:
        at, _ = trying.take(trying.recipe(one.steps))
        models.append(at.ready.candidate(f"candidate {one.number}", "", replace(measuring, target=at.target)))
    builder = ReportBuilder(models, measuring, progress)
    builder.measure_quality(trying.evaluation())
    if request.bench:
        builder.measure_speed([trying.model.source])
    found = []
    for one, model, entry in zip(wanted, models[1:], builder.entries[1:], strict=True):
        measured = builder.measured
        held = gates([builder.entries[0], entry], builder.evaluation, builder.figures, measuring.limits,
                     broken=measured.broken if measured else {})  # fmt: skip
        found.append(_judged(one, model.name, builder, held, len(wanted)))
    return Verdicts(found, builder)


def _judged(one: Tried, name: str, builder: ReportBuilder, held: Sequence[Gate], count: int) -> Judged:
    figures = {(m.model, m.name): m for m in builder.figures}
    speed = figures.get((name, "speedup"))
    evaluation = builder.evaluation
    value = figures.get((name, evaluation.metric)) if evaluation else None
    drop = builder.measured.drops.get(name) if builder.measured else None
    interval = None if drop is None or drop.interval is None else widened(drop.drop, drop.interval, count)
    passed = all(gate.passed is True for gate in held if gate.asked) and not any(
        gate.passed is False for gate in held if gate.name not in ("speed",) or gate.asked
    )
    bounds = None if speed is None or speed.low is None or speed.high is None else (speed.low, speed.high)
    return Judged(
        number=one.number, passed=passed, value=value.value if value else None, drop=drop.drop if drop else None,
        interval=interval, speedup=speed.value if speed else None, speedup_interval=bounds,
    )  # fmt: skip


def widened(middle: float, interval: tuple[float, float], count: int) -> tuple[float, float]:
    """A 95 % interval as wide as it must be for all of ``count`` to hold at once (Bonferroni, normal quantiles)."""
    from statistics import NormalDist

    factor = NormalDist().inv_cdf(1 - 0.025 / max(1, count)) / Z
    return middle + factor * (interval[0] - middle), middle + factor * (interval[1] - middle)
