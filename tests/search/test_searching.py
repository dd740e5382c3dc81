"""The loop of a search with a real study, and candidates that cost nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compresskit import registry
from compresskit.recipe.limits import Limits
from compresskit.search.searching import Bars, Searching
from compresskit.search.space import LENGTH, Choice, Slot, Space
from compresskit.search.study import SearchStudy
from compresskit.search.trying import Figures, OutOfTime
from compresskit.searched import Tried

GOALS = ("size", "latency")


def choice(name: str, **options: Any) -> Choice:
    return Choice.of(registry.get(name), **options)


def space() -> Space:
    kd = Choice("distill.kd", {"teacher": "$model"}, {LENGTH: choice("distill.kd").ranges[LENGTH]}, None)
    return Space(
        (
            Slot((None, choice("prune.structured"))),
            Slot((None, kd)),
            Slot((choice("quantize.int8-static"), choice("quantize.auto"), None)),
        )
    )


@dataclass
class FakeTrying:
    """Stands where candidates are made: their figures follow from their steps."""

    ends: float = float("inf")
    data: Sequence[int] = range(1000)
    base: Figures = field(default_factory=lambda: Figures(1000, 1.0, 90.0, 0.0, None))
    seconds_a_pass: dict[str, float] = field(default_factory=lambda: {"float32": 0.001})
    made: list[list[dict[str, Any]]] = field(default_factory=list)

    def recipe(self, steps: Sequence[dict[str, Any]]) -> FakeRecipe:
        return FakeRecipe(tuple(steps))

    def take(self, recipe: FakeRecipe) -> tuple[Any, tuple[Any, ...]]:
        if len(self.made) >= self.ends:
            raise OutOfTime
        self.made.append(list(recipe.steps))
        return SimpleNamespace(steps={k: v for step in recipe.steps for k, v in step.items()}), recipe.steps

    def least_bytes(self, steps: Sequence[dict[str, Any]]) -> int:
        return int(1000 * steps[0].get("quantize.auto", {}).get("target-bits", 0) / 32)

    def measure(self, at: Any) -> Figures:
        left = at.steps.get("prune.structured", {}).get("target-macs", 1.0)
        epochs = at.steps.get("distill.kd", {}).get("epochs", 0)
        drop = 20 * (1 / left - 1) ** 2 / (1 + epochs)
        size, faster = 1000 * left, 1 / left
        if "quantize.int8-static" in at.steps:
            size, faster = size / 4, 2 * faster
        if (auto := at.steps.get("quantize.auto")) is not None:
            size = size * auto["target-bits"] / 32
            drop += 5 * 0.3 ** (auto["target-bits"] - 3) * (1.0 if auto.get("preset") == "fast" else 0.1)
        return Figures(int(size), faster, 90 - drop, drop, (drop - 0.1, drop + 0.1))


@dataclass(frozen=True)
class FakeRecipe:
    steps: tuple[Any, ...]

    def __replace__(self, **changes: Any) -> FakeRecipe:
        return FakeRecipe(**changes)

    def document(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}


def searching(place: Path, trying: FakeTrying, *, seconds: float = 600.0, most: int | None = 40) -> Searching:
    study = SearchStudy.open(str(place), goals=2, seed=0)
    bars = Bars(Limits("0.5pt", None, None), 0.5)
    return Searching(
        trying, space(), study, bars, GOALS, time.monotonic() + seconds, most, lambda _line: None, "here"  # type: ignore[arg-type]
    )  # fmt: skip


def by_rung(tried: Sequence[Tried], rung: str) -> list[Tried]:
    return [one for one in tried if one.rung == rung]


def test_a_search_looks_then_trains_then_rounds_with_care(tmp_path: Path) -> None:
    trying = FakeTrying()
    one = searching(tmp_path / "study", trying)
    one.run()
    tried = one.study.tried()
    assert len(tried) == 40 and "40 candidates" in one.stopped
    looks, trained = by_rung(tried, "look"), by_rung(tried, "trained")
    assert len(looks) >= 8 and by_rung(tried, "brief") and trained
    assert not any("distill.kd" in step for look in looks for step in look.steps)
    # A candidate stands once for each rung, and what was trained ends in every way to quantize.
    assert len({(repr(sorted(t.values.items())), t.rung) for t in tried}) == len(tried)
    kept = [t for t in tried if t.state == "kept" and t.trained]
    assert max(t.smaller or 0 for t in kept) > max(t.smaller or 0 for t in looks if t.state == "kept")
    # What the sampler learnt from is the looks alone.
    assert one.study.importance(0)


def test_what_the_time_cut_off_is_tried_when_the_search_goes_on(tmp_path: Path) -> None:
    first = searching(tmp_path / "study", FakeTrying(ends=4), most=5)
    first.run()
    cut = next(one for one in first.study.tried() if one.state == "cut")
    assert cut.number == 4 and cut.reason
    then = searching(tmp_path / "study", FakeTrying(), most=6)
    then.run()
    again = then.study.tried()[-1]
    assert again.values == cut.values and again.state != "cut" and again.number == 5


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["earlier first", "later first"])
def test_two_workers_never_make_the_same_candidate(order: tuple[int, int], tmp_path: Path) -> None:
    """The one that looked before the other said what it is about goes on, whichever trial began earlier."""
    studies = [SearchStudy.open(str(tmp_path / "study"), goals=2, seed=0) for _ in order]
    trials = [study._study.ask() for study in studies]
    for trial in trials:
        trial.set_user_attr("worker", {"host": "another", "process": 1 + trial.number})
        trial.set_user_attr("alive", time.time())
    taken = [studies[n].taken(trials[n], {"a": 1}, "look") for n in order]
    assert taken == [False, True]
    assert not studies[0].taken(trials[0], {"a": 2}, "look")


@pytest.mark.parametrize("limits", [Limits("0.5pt", "2B", None), Limits("0.5pt", None, 100.0)])
def test_bars_that_are_far_away_end_a_search(limits: Limits, tmp_path: Path) -> None:
    one = searching(tmp_path / "study", FakeTrying())
    one.bars = Bars(limits, 0.5)
    one.run()
    assert "near the limits" in one.stopped and one.count <= 6


def test_nothing_is_computed_of_what_is_known_to_be_too_large(tmp_path: Path) -> None:
    one = searching(tmp_path / "study", FakeTrying(), most=12)
    one.bars = Bars(Limits("0.5pt", "100B", None), 0.5)
    one.space = one.space.only(["quantize"])
    one.run()
    tried = one.study.tried()
    dropped = [t for t in tried if t.bytes is None]
    assert dropped and all("not computed" in t.reason for t in dropped)
    assert all(t.values["quantize.auto.target_bits"] > 3.2 for t in dropped)
    # Some are measured all the same: where nothing keeps the bar, the nearest is wanted.
    assert sum(t.bytes is not None for t in tried[:4]) == 4
