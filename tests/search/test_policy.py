"""What is tried next: the phases of a search, in a world in which everything takes as long as it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from compresskit import registry
from compresskit.search.policy import LOOKS, Policy, Wish, cut_off
from compresskit.search.prospects import Clock
from compresskit.search.space import LENGTH, SAMPLES, Choice, Slot, Space
from compresskit.searched import Rung, Tried

SAMPLES_OF_AN_EPOCH, A_SAMPLE = 10_000, 0.004


def choice(name: str) -> Choice:
    return Choice.of(registry.get(name))


def convolutions(*, trains: bool = True) -> Space:
    kd = choice("distill.kd")
    recovery = (Slot((None, replace(kd, ranges={LENGTH: kd.ranges[LENGTH]}))),) if trains else ()
    finals = Slot((choice("quantize.int8-static"), choice("quantize.auto"), None))
    return Space((Slot((None, choice("prune.structured"))), *recovery, finals))


@dataclass
class World:
    """Gives every candidate figures and a time, and asks the policy for the next one until time is over.

    Attributes:
        total: Seconds.
        by_heart: Points that training alone costs on the samples by which the choice is made.
    """

    total: float
    by_heart: float = 0.0
    space: Space = field(default_factory=convolutions)
    drop: float = 0.5
    now: float = 0.0
    tried: list[Tried] = field(default_factory=list)
    wishes: list[tuple[float, Wish]] = field(default_factory=list)

    def run(self) -> World:
        policy = Policy(self.space, ("size", "latency"), self.drop)
        while self.now < self.total:
            policy.known = self.tried
            clock = Clock(self.total, self.total - self.now, A_SAMPLE, SAMPLES_OF_AN_EPOCH)
            wish = policy.next(policy.measured(clock), exhausted=True)
            if wish is None:
                break
            self.wishes.append((self.now, wish))
            self.tried.append(self._tried(wish, policy))
        return self

    def _tried(self, wish: Wish, policy: Policy) -> Tried:
        values, rung = wish.values, wish.rung
        seconds, drop, smaller, faster = self._figures(values, rung)
        known = any(policy.trained(one.values) == policy.trained(values) for one in self.tried)
        self.now += 5.0 if known and rung != "brief" and not _careful(values) else seconds
        forgiven = policy.forgiven(values, rung, drop)
        kept = drop - forgiven <= self.drop
        final = rung == "whole" or (rung == "trained" and values.get("quantize") != "quantize.auto")
        return Tried(
            number=len(self.tried), steps=[{"step": values}], values=dict(values), rung="whole" if final else rung,
            state="kept" if kept else "missed" if final else "looked", bytes=1, smaller=smaller, faster=faster,
            drop=drop, interval=(drop - 0.1, drop + 0.1), forgiven=forgiven, seconds=seconds,
        )  # fmt: skip

    def _figures(self, values: Mapping[str, Any], rung: Rung) -> tuple[float, float, float, float]:
        left = values.get("prune.structured.target_macs", 1.0)
        epochs = values.get(f"distill.kd.{LENGTH}", 0)
        epochs *= values.get(f"distill.kd.{SAMPLES}", SAMPLES_OF_AN_EPOCH) / SAMPLES_OF_AN_EPOCH
        drop = 30 * (1 / left - 1) ** 2
        seconds = 5.0 + epochs * SAMPLES_OF_AN_EPOCH * A_SAMPLE
        if epochs:
            drop = drop * min(1.0, 0.3 / epochs) + self.by_heart * max(1.0, epochs) ** 0.2
        if values.get("quantize") == "quantize.auto":
            bits = values["quantize.auto.target_bits"]
            drop += 8 * 0.25 ** (bits - 3) * (0.2 if _careful(values) else 1.0)
            return seconds + 20.0 * _careful(values), drop, 8 * 4 / bits / left, 1 / left
        eight = values.get("quantize") == "quantize.int8-static"
        return seconds, drop, (4 if eight else 1) / left, (2 if eight else 1) / left

    def at(self, *rungs: Rung) -> list[Tried]:
        return [one for (_, wish), one in zip(self.wishes, self.tried, strict=True) if wish.rung in rungs]


def _careful(values: Mapping[str, Any]) -> bool:
    return "quantize.auto.preset" in values


def test_looks_come_first_then_brief_trainings_then_one_in_full_with_every_way_to_quantize() -> None:
    world = World(1600).run()
    rungs = list(dict.fromkeys(wish.rung for _, wish in world.wishes))
    assert rungs == ["look", "whole", "brief", "trained"], rungs
    assert all(now < LOOKS * world.total for now, wish in world.wishes if wish.rung == "look")
    # The first brief training is of the original: what it loses is what training costs by itself.
    assert [one.values.get("prune.structured", "none") for one in world.at("brief")] == ["none", "prune.structured"]
    trained = world.at("trained")
    assert {one.values.get("quantize") for one in trained} == {"quantize.int8-static", "quantize.auto", "none"}
    assert len({one.values[f"distill.kd.{LENGTH}"] for one in trained}) == 1
    # What was rounded plainly on it is then rounded with care.
    assert any(_careful(one.values) and one.values.get(f"distill.kd.{LENGTH}") for one in world.at("whole"))


@pytest.mark.parametrize("total", [600, 1600])
def test_training_takes_the_time_that_is_left(total: float) -> None:
    world = World(total).run()
    begun, wish = next((now, wish) for now, wish in world.wishes if wish.rung == "trained")
    epochs = wish.values[f"distill.kd.{LENGTH}"]
    took = epochs * SAMPLES_OF_AN_EPOCH * A_SAMPLE
    assert took < total - begun, "it would be cut off"
    assert took > 0.3 * (total - begun) or epochs >= 10
    assert wish.values[f"distill.kd.{LENGTH}"] != 1


def test_what_training_costs_on_samples_known_by_heart_is_not_held_against_a_candidate() -> None:
    strict, mild = World(1600).run(), World(1600, by_heart=1.0).run()
    for world in (strict, mild):
        assert any(one.state == "kept" and one.values.get(f"distill.kd.{LENGTH}") for one in world.at("trained"))
    assert not any(one.forgiven for one in strict.tried)
    forgiven = [one for one in mild.at("trained", "whole") if one.values.get(f"distill.kd.{LENGTH}")]
    assert all(one.forgiven > 0 for one in forgiven)
    # Not without bounds, and nothing that wasn't trained in full.
    assert all(one.forgiven <= 3.0 + 1e-9 for one in forgiven)
    assert not any(one.forgiven for one in mild.at("look", "brief"))


def test_where_nothing_is_trained_careful_rounding_takes_the_time() -> None:
    world = World(400, space=convolutions(trains=False)).run()
    rungs = {wish.rung for _, wish in world.wishes}
    assert rungs == {"look", "whole"}
    careful = world.at("whole")
    # What looked too bad for care to help isn't followed.
    assert careful and all(one.values["quantize.auto.target_bits"] > 2.5 for one in careful)


def test_a_look_that_was_cut_off_is_had_again_once() -> None:
    def one(number: int, state: Any, rung: Rung = "look") -> Tried:
        return Tried(number=number, steps=[], values={"a": 1}, state=state, rung=rung)

    assert cut_off([one(0, "cut")]) == [{"a": 1}]
    assert cut_off([one(0, "cut"), one(1, "looked")]) == []
    assert cut_off([one(0, "cut", "trained")]) == []  # the epochs that fit are others now
