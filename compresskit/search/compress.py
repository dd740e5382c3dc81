"""From a model and a bar to the smallest or fastest model that keeps it, with the recipe that makes it."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from compresskit.benchmark.machine import cpu_flags, cpu_name
from compresskit.errors import STOPS, UsageError, stop_code
from compresskit.model import portable
from compresskit.recipe.plan import Recipe
from compresskit.report import Report
from compresskit.runner.cache import Cache
from compresskit.runner.measured import Measured
from compresskit.runner.pipeline import run_recipe
from compresskit.search.request import Found, Request, identity, prepared
from compresskit.search.searching import Bars, Searching
from compresskit.search.space_file import space_of
from compresskit.search.study import SearchStudy, shown
from compresskit.search.tried import Pick, front, ranked, shortlist
from compresskit.search.trying import Figures, Trying, until
from compresskit.search.verdict import Cost, Verdicts, judge
from compresskit.searched import Judged, Search, Tried, steps_text
from compresskit.stage import Progress, say_nothing, silent

RECIPE = "recipe.yaml"
"""In the bundle: the recipe that makes it again."""


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


@dataclass(frozen=True)
class Ways:
    """Where the steps of candidates are kept, and how the search is shown."""

    cache: Cache
    showing: Showing


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
    end, ways = start + request.seconds, Ways(cache, showing)
    with tempfile.TemporaryDirectory(prefix="compresskit-") as work:
        found = prepared(request, cache, until(end, showing.progress), Path(work))
        cost = Cost.of(request, found.trying)
        deadline = end - cost.reserve(request.seconds)
        found.trying.report_to(until(deadline, showing.progress))
        study = SearchStudy.open(request.study, goals=found.goals(request), seed=request.recipe.seed)
        study.claim(identity(request, found), request.study)
        study.note("request", {**request.to_json(), "space": found.space.document(), "machine": machine()})
        study.note("until", time.time() + deadline - time.monotonic())
        known = study.tried()
        _announce(request, found, known, showing)
        searching = searching_of(request, found, study, deadline, showing.tell)
        stopped = 0
        try:
            with _others(request, ways):
                searching.run()
        except STOPS as error:
            if not any(one.bytes is not None for one in study.tried()):
                raise
            stopped = stop_code(error)
            showing.tell("stopped: evaluating the best candidate so far; press Ctrl-C again to end at once")
        seconds = (study.attribute("seconds") or 0.0) + time.monotonic() - start
        study.note("seconds", round(seconds, 1))
        study.note("until", 0.0)  # other workers needn't begin another candidate
        report = _finish(request, found, searching, cost, end, ways)
    if stopped:
        raise Stopped(report, stopped)
    return report


def _others(request: Request, ways: Ways) -> AbstractContextManager[None]:
    """Other workers, for as long as the search takes."""
    if request.on is None:
        return nullcontext()
    from compresskit.search.cluster import workers_on_ray

    return workers_on_ray(request.study, request.num_workers, ways.cache.root, ways.showing.tell)


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
    where = portable(trying.select.name)
    showing.tell(
        f"candidates are compared by {metric} on {samples} of {where}{'' if request.select_data else ', held out'}"
    )
    if not request.select_data and found.space.trains():
        showing.tell(f"if the model was trained on {where}, give other samples with `select_data`: they compare better")
    for note in found.notes:
        showing.tell(note)
    if known:
        showing.tell(f"resuming with {len(known)} candidates of {shown(request.study)}")


def _finish(request: Request, found: Found, searching: Searching, cost: Cost, end: float, ways: Ways) -> Report:
    """Judge the best candidates, write those that are wanted, and tell how they were found.

    Args:
        request: What was searched for.
        found: The model and its data.
        searching: This worker's part in the search.
        cost: Of the verdict.
        end: By ``time.monotonic``: the time limit of the user.
        ways: Where steps are kept, and how all is shown.

    Returns:
        The report of the first of them.
    """
    tried, bars = searching.study.tried(), searching.bars
    found.trying.report_to(ways.showing.progress)
    best = front(tried, request.goals)
    count = cost.count(end - time.monotonic())
    wanted = shortlist(best, bars.close(tried) if best else [], request.picks, count) or [_nearest(tried, bars)]
    verdicts = judge(request, found.trying, wanted, ways.showing.progress)
    search = _told(request, found, searching, best, verdicts.judged, wanted[0])
    winners = _winners(request, wanted, verdicts.judged)
    return _write(request, found.trying, search, winners, verdicts, ways)


def _winners(request: Request, wanted: Sequence[Tried], judged: Sequence[Judged]) -> dict[Pick, Tried]:
    """The candidate of each pick: the first in its order that passes. Where none passes, the first of all."""
    passed = [one for one, seen in zip(wanted, judged, strict=True) if seen.passed]
    if not passed:
        return {request.picks[0]: wanted[0]}
    return {pick: ranked(passed, pick)[0] for pick in request.picks}


def place_of(output: Path, picks: Sequence[Pick], pick: Pick) -> Path:
    """The folder of a pick: the first one has ``output``, another one its name after it."""
    return output if pick == picks[0] else output.with_name(f"{output.name}-{pick}")


def _write(
    request: Request, trying: Trying, search: Search, winners: dict[Pick, Tried], verdicts: Verdicts, ways: Ways
) -> Report:
    """The bundle of each winner; returns the report of the first."""
    numbers = [one.number for one in search.judged]
    places: dict[int, Path] = {}
    notes: list[str] = []
    for pick, winner in winners.items():
        same = winner.number in places
        place = places.setdefault(winner.number, place_of(request.output, request.picks, pick))
        if len(winners) > 1:
            notes.append(f"`pick` {pick}: candidate {winner.number}, {'also ' if same else ''}in {portable(place)}")
    by_place = {
        place: (number, [p for p in winners if winners[p].number == number]) for number, place in places.items()
    }
    reports = []
    for place, (number, picks) in by_place.items():
        told = search.model_copy(
            update={"winner": number, "pick": ", ".join(picks), "notes": [*search.notes, *notes]}
        )  # fmt: skip
        winner = winners[picks[0]]
        known = verdicts.of(numbers.index(number))
        reports.append(_bundle(request, trying.recipe(winner.steps), place, told, known, ways))
    return reports[0]


def _bundle(
    request: Request, found: Recipe, place: Path, search: Search, known: Measured | None, ways: Ways
) -> Report:  # fmt: skip
    asked, showing = request.recipe, ways.showing
    text = steps_text(found.document()["steps"])
    recipe = replace(
        found, name="compress", description=f"Found by compress: {text}.", max_drop=asked.max_drop,
        max_size=asked.max_size, min_speedup=asked.min_speedup,
    )  # fmt: skip

    def complete(report: Report, folder: Path) -> Report:
        document = yaml.safe_dump(recipe.document(), sort_keys=False, allow_unicode=True)
        (folder / RECIPE).write_text(document, encoding="utf-8")
        return report.model_copy(update={"search": search, "notes": [*report.notes, *search.notes]})

    return run_recipe(
        recipe, place, bench=request.bench, cache=ways.cache, force=showing.force, command=showing.command,
        progress=showing.progress, draw=showing.draw, complete=complete, known=known,
    )  # fmt: skip


def _told(
    request: Request, found: Found, searching: Searching, best: Sequence[Tried], judged: Sequence[Judged], first: Tried
) -> Search:
    """How the result was found, but for which candidate it is."""
    trying, study = found.trying, searching.study
    return Search(
        tried=study.tried(),
        front=[one.number for one in best],
        judged=list(judged),
        goals=list(request.goals),
        importance=study.importance(0),
        chosen_by=f"{trying.samples} samples of {portable(trying.select.name)}",
        metric=trying.metric.name if trying.metric is not None else "likeness",
        seconds=float(study.attribute("seconds") or 0.0),
        notes=[*found.notes, *_notes(first, best, judged, searching.stopped, searching.bars)],
    )


def _nearest(tried: Sequence[Tried], bars: Bars) -> Tried:
    """Where no candidate keeps the bars: the one that misses them by the least.

    Raises:
        UsageError: None was measured.
    """

    def missed(one: Tried) -> float:
        figures = Figures(one.bytes or 0, one.faster, one.value or 0.0, one.drop or 0.0, one.interval)
        return max(bars.missed(figures, one.forgiven).values(), default=0.0)

    known = [one for one in tried if one.bytes is not None]
    if not known:
        reasons = list(dict.fromkeys(one.reason for one in tried if one.reason))
        raise UsageError(
            f"none of {len(tried)} candidates could be measured" + (f": {reasons[0]}" if reasons else ""),
            "give more `time`, or another `space`",
        )
    return min(known, key=lambda one: (missed(one), one.number))


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
