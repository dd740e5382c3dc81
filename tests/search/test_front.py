"""Which candidates are worth having, and the one that is wanted."""

from __future__ import annotations

from typing import Any

import pytest

from compresskit.search.tried import front, ranked, shortlist
from compresskit.search.verdict import widened
from compresskit.searched import Tried, tried_text


def tried(number: int, smaller: float, faster: float, drop: float, state: str = "kept") -> Tried:
    return Tried(
        number=number, steps=[{"quantize.rtn": {"bits": number}}], values={}, state=state,  # type: ignore[arg-type]
        bytes=round(1000 / smaller), smaller=smaller, faster=faster, drop=drop,
    )  # fmt: skip


def test_the_front_is_what_nothing_beats_in_everything() -> None:
    found = [tried(0, 4, 2, 0.1), tried(1, 8, 1, 0.1), tried(2, 3, 1.5, 0.2), tried(3, 9, 3, 0.0, "missed")]
    assert [one.number for one in front(found, ("size", "latency"))] == [1, 0]
    # What only latency beats has no place where size alone counts.
    assert [one.number for one in front(found, ("size",))] == [1]


def test_equal_recipes_stand_once() -> None:
    twice = [tried(1, 4, 2, 0.1), tried(1, 4, 2, 0.1).model_copy(update={"number": 7})]
    assert len(front(twice, ("size", "latency"))) == 1


@pytest.mark.parametrize(("pick", "number"), [("size", 1), ("latency", 2), ("quality", 3), ("knee", 0)])
def test_what_is_wanted_decides(pick: str, number: int) -> None:
    found = [tried(0, 6, 3, 0.5), tried(1, 8, 1, 0.5), tried(2, 2, 4, 0.5), tried(3, 1, 1, 0.0)]
    assert ranked(found, pick)[0].number == number  # type: ignore[arg-type]


def test_an_interval_is_widened_for_the_number_of_comparisons() -> None:
    assert widened(1.0, (0.0, 2.0), 1) == pytest.approx((0.0, 2.0))
    low, high = widened(1.0, (0.0, 2.0), 5)
    # 99 % of a normal distribution lies within 2.576 standard deviations, 95 % within 1.960.
    assert (1 - low, high - 1) == pytest.approx((2.5758 / 1.96, 2.5758 / 1.96), rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "values", "text"),
    [
        (
            [{"quantize.adaround": {"bits": 4, "layer-bits": ["a=8/16", "b=3"]}}],
            {"quantize": "quantize.auto", "quantize.auto.target_bits": 4.25},
            "quantize.adaround (target-bits 4.25)",
        ),
        (
            [{"prune.structured": {"target-macs": 0.7}}, {"quantize.rtn": {"bits": 4, "layer-bits": ["a=8/16"]}}],
            {"quantize": "quantize.rtn", "quantize.rtn.bits": 4},
            "prune.structured (target-macs 0.7) + quantize.rtn (bits 4 to 8)",
        ),
    ],
)
def test_the_text_of_a_candidate_says_what_was_picked(
    steps: list[dict[str, Any]], values: dict[str, Any], text: str
) -> None:
    assert tried_text(Tried(number=0, steps=steps, values=values, state="kept")) == text


def test_those_that_are_judged_are_the_wanted_the_ends_the_close_and_the_sure() -> None:
    hoped = [tried(n, 4 + n, 2 + 0.1 * n, 0.2).model_copy(update={"forgiven": 1.0}) for n in range(6)]
    ends = [tried(10, 20, 0.5, 0.2), tried(11, 0.9, 9, 0.2)]
    sure, close = tried(20, 2, 2, 0.0), tried(30, 12, 2, 0.6, "missed")
    found = shortlist([*hoped, *ends, sure], [close], ["knee"], 8)
    assert {10, 11, 20, 30} <= {one.number for one in found} and len(found) == 8
    assert found == ranked(found, "knee")
