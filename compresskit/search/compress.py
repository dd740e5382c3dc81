"""From a model and a bar to the smallest or fastest model that keeps it, with the recipe that makes it."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from compresskit.benchmark.machine import cpu_flags, cpu_name
from compresskit.errors import STOPS, UsageError, stop_code
from compresskit.model import portable
from compresskit.quality.intervals import Z
from compresskit.report import Gate, Report
from compresskit.runner.cache import Cache
from compresskit.runner.gates import gates
from compresskit.runner.judging import Measuring, ReportBuilder
from compresskit.runner.pipeline import run_recipe
from compresskit.search.request import Found, Request, identity, prepared
from compresskit.search.searching import Bars, Searching
from compresskit.search.space_file import space_of
from compresskit.search.study import SearchStudy, shown
from compresskit.search.tried import front, shortlist
from compresskit.search.trying import Figures, Trying, until
from compresskit.searched import Judged, Search, Tried, steps_text
from compresskit.stage import Progress, say_nothing, silent

RECIPE = "recipe.yaml"
"""In the bundle: the recipe that makes it again."""
_JUDGED = 8
"""Candidates that are measured on the evaluation data, at most."""
_RESERVE, _LEAST_S, _MOST_S = 0.12, 10.0, 180.0
"""Share of the time that is kept for the verdict, and its bounds in seconds."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in a search; ``report`` is that of the best so far, ``code`` how to exit."""

    def __init__(self, report: Report, code: int) -> None:
        super().__init__()
        self.report, self.code = report, code


@dataclass(frozen=True)
class Showing:
    """How the search is shown.

    Attributes:
        progress: Called from time to time as ``progress(what, done, total)``.
        tell: Shows a line right away.
        draw: Gives the page beside the report; None leaves it away.
        command: How the user asked for this.
        force: Overwrite an existing output.
    """

    progress: Progress = silent
    tell: Callable[[str], None] = say_nothing
    draw: Callable[[Report], str] | None = None
    command: str = ""
    force: bool = False


def compress(request: Request, cache: Cache, showing: Showing) -> Report:
    """Search, judge the best candidates on the evaluation data, and write the one that is wanted.

    Args:
        request: What is to be found.
        cache: Where steps of candidates are kept.
        showing: How it is shown.

    Returns:
        The report of the result, whose ``search`` tells how it was found; where no candidate passes it is that of the
        nearest, and its verdict FAIL.

    Raises:
        UsageError: What is asked for doesn't fit together, or the study is of another search.
        InputError: The model or the data doesn't allow it.
        MachineError: Optuna isn't installed, or the disk is full.
    """
    start = time.monotonic()
    reserve = min(max(_RESERVE * request.seconds, min(_LEAST_S, request.seconds / 3)), _MOST_S)
    deadline = start + request.seconds - reserve
    with tempfile.TemporaryDirectory(prefix="compresskit-") as work:
        found = prepared(request, cache, until(deadline, showing.progress), Path(work))
        study = SearchStudy.open(request.study, goals=found.goals(request), seed=request.recipe.seed)
        study.claim(identity(request, found), request.study)
        study.note("request", {**request.to_json(), "space": found.space.document(), "machine": machine()})
        study.note("until", time.time() + deadline - time.monotonic())
        known = study.tried()
        _announce(request, found, known, showing)
        searching = searching_of(request, found, study, deadline, showing.tell)
        stopped = 0
        try:
            searching.run()
        except STOPS as error:
            if not any(one.bytes is not None for one in study.tried()):
                raise
            stopped = stop_code(error)
            showing.tell("stopped: evaluating the best candidate so far; press Ctrl-C again to end at once")
        seconds = (study.attribute("seconds") or 0.0) + time.monotonic() - start
        study.note("seconds", round(seconds, 1))
        study.note("until", 0.0)  # other workers needn't begin another candidate
        report = _finish(request, found, searching, cache, showing)
    if stopped:
        raise Stopped(report, stopped)
    return report


def join(place: str, cache: Cache, showing: Showing) -> int:
    """Take part in a search that another worker began, until its time is over; returns how many candidates were tried.

    Args:
        place: Where the search is kept.
        cache: Where steps of candidates are kept.
        showing: How it is shown.

    Raises:
        UsageError: There is no search, or model and data are not those that it was begun with.
    """
    study = SearchStudy.open(place, goals=0, seed=os.getpid(), create=False)
    asked, end = study.attribute("request"), study.attribute("until")
    if asked is None:
        raise UsageError(f"{shown(place)} holds no search", "begin one: compresskit compress MODEL … `study` STORAGE")
    left = float(end) - time.time()
    if left <= 0:
        showing.tell(f"the search of {shown(place)} is over")
        return 0
    deadline = time.monotonic() + left
    request = Request.from_json(asked, place, space_of(asked["space"]), left)
    with tempfile.TemporaryDirectory(prefix="compresskit-") as work:
        found = prepared(request, cache, until(deadline, showing.progress), Path(work))
        study.claim(identity(request, found), place)
        if asked["machine"] != machine():
            showing.tell(
                "this machine has another CPU than the one that began the search: its timings only rank candidates"
            )
        searching = searching_of(request, found, study, deadline, showing.tell)
        searching.over = lambda: float(study.attribute("until")) <= time.time()
        searching.run()
    return searching.count


def searching_of(
    request: Request, found: Found, study: SearchStudy, deadline: float, tell: Callable[[str], None]
) -> Searching:
    """This worker's part in a search."""
    bars = Bars(request.limits, found.trying.allowed())
    return Searching(
        found.trying, found.space, study, bars, request.goals, deadline, request.most, tell, machine()
    )  # fmt: skip


def _announce(request: Request, found: Found, known: Sequence[Tried], showing: Showing) -> None:
    trying = found.trying
    metric = trying.metric.name if trying.metric is not None else "similarity to the original"
    samples = f"{trying.samples} samples"
    where = f"of {portable(trying.select.name)}" + ("" if request.select_data else ", held out")
    showing.tell(f"candidates are compared by {metric} on {samples} {where}")
    for note in found.notes:
        showing.tell(note)
    if known:
        showing.tell(f"resuming with {len(known)} candidates of {shown(request.study)}")


def _finish(request: Request, found: Found, searching: Searching, cache: Cache, showing: Showing) -> Report:
    """Judge the best candidates, write the one that is wanted, and tell how it was found."""
    study = searching.study
    tried = study.tried()
    trying, bars = found.trying, searching.bars
    trying.patient(showing.progress)
    best = front(tried, request.goals)
    wanted = shortlist(best, bars.close(tried) if best else [], request.pick, _JUDGED)
    if not wanted:
        if (nearest := _nearest(tried, bars)) is None:
            reasons = list(dict.fromkeys(one.reason for one in tried if one.reason))
            raise UsageError(
                f"none of {len(tried)} candidates could be measured" + (f": {reasons[0]}" if reasons else ""),
                "give more `time`, or another `space`",
            )
        wanted = [nearest]
    judged = judge(request, trying, wanted, showing.progress)
    winner = next((one for one, seen in zip(wanted, judged, strict=True) if seen.passed), wanted[0])
    chosen_by = f"{trying.samples} samples of {portable(trying.select.name)}"
    search = Search(
        tried=tried,
        front=[one.number for one in best],
        judged=judged,
        winner=winner.number,
        pick=request.pick,
        goals=list(request.goals),
        importance=study.importance(0),
        chosen_by=chosen_by,
        metric=trying.metric.name if trying.metric is not None else "likeness",
        seconds=float(study.attribute("seconds") or 0.0),
        notes=[*found.notes, *_notes(wanted[0], best, judged, searching.stopped, bars)],
    )
    recipe = replace(
        trying.recipe(winner.steps), name="compress", description=f"Found by compress: {steps_text(winner.steps)}.",
        max_drop=request.recipe.max_drop, max_size=request.recipe.max_size, min_speedup=request.recipe.min_speedup,
    )  # fmt: skip

    def complete(report: Report, folder: Path) -> Report:
        text = yaml.safe_dump(recipe.document(), sort_keys=False, allow_unicode=True)
        (folder / RECIPE).write_text(text, encoding="utf-8")
        return report.model_copy(update={"search": search, "notes": [*report.notes, *search.notes]})

    return run_recipe(
        recipe, request.output, bench=request.bench, cache=cache, force=showing.force, command=showing.command,
        progress=showing.progress, draw=showing.draw, complete=complete,
    )  # fmt: skip


def judge(request: Request, trying: Trying, wanted: Sequence[Tried], progress: Progress) -> list[Judged]:
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
    source = trying.evaluation()
    builder.measure_quality(source)
    if request.bench:
        builder.measure_speed([trying.model.source])
    found = []
    for one, model, entry in zip(wanted, models[1:], builder.entries[1:], strict=True):
        measured = builder.measured
        held = gates([builder.entries[0], entry], builder.evaluation, builder.figures, measuring.limits,
                     broken=measured.broken if measured else {})  # fmt: skip
        found.append(_judged(one, model.name, builder, held, len(wanted)))
    return found


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


def _nearest(tried: Sequence[Tried], bars: Bars) -> Tried | None:
    """Where no candidate keeps the bars: the one that misses them by the least; None where none was measured."""

    def missed(one: Tried) -> float:
        figures = Figures(one.bytes or 0, one.faster, one.value or 0.0, one.drop or 0.0, one.interval)
        return max(bars.missed(figures, one.forgiven).values(), default=0.0)

    known = [one for one in tried if one.bytes is not None]
    return min(known, key=lambda one: (missed(one), one.number), default=None)


def _notes(first: Tried, best: Sequence[Tried], judged: Sequence[Judged], ended: str, bars: Bars) -> list[str]:
    found = [f"the search ended because {ended}"] if ended else ["the search was stopped"]
    if not best:
        found.append(
            "no candidate meets the limits on the selection samples; the nearest one would meet "
            + " and ".join(_reachable(first, bars))
        )
    elif not any(one.passed for one in judged):
        found.append("no candidate meets the limits on the evaluation data; this is the first choice of `pick`")
    if len(judged) > 1:
        found.append(
            f"{len(judged)} candidates were measured on the evaluation data: the intervals of their drops are "
            "widened so that all hold together with 95 % confidence"
        )
    if bars.drop is None:
        found.append("the choice was made by similarity to the original: the samples have no labels")
    return found


def _reachable(one: Tried, bars: Bars) -> list[str]:
    """The bars that were asked for, as wide as a candidate keeps them."""
    found = []
    if bars.limits.max_size is not None and one.bytes is not None:
        found.append(f"`max_size` {math.ceil(one.bytes / 1000)}kB")
    if bars.drop is not None and one.drop is not None and (bars.limits.max_drop is not None or one.drop > bars.drop):
        found.append(f"`max_drop` {max(0.0, math.ceil(10 * one.drop) / 10):g}pt")
    if bars.limits.min_speedup is not None and one.faster is not None:
        found.append(f"`min_speedup` {math.floor(10 * one.faster) / 10:g}")
    return found


def machine() -> str:
    """The class of this machine, which decides whose timings may be compared."""
    return f"{cpu_name()} {' '.join(sorted(cpu_flags()))}"
