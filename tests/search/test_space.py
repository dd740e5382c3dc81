"""What a search may try: picked, written as steps, narrowed, and read back from its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from compresskit import registry
from compresskit.errors import UsageError
from compresskit.recipe.reading import parse_recipe
from compresskit.search.space import NONE, Choice, Slot, Space, assignments, tunable
from compresskit.search.space_file import read_space


class Ends:
    """Answers each question with its first or its last answer."""

    def __init__(self, last: bool) -> None:
        self.last, self.asked = last, list[str]()

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        return choices[-1 if self.last else 0]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.asked.append(name)
        return high if self.last else low

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.asked.append(name)
        return high if self.last else low


def choice(name: str, **options: Any) -> Choice:
    return Choice.of(registry.get(name), **options)


def whole() -> Space:
    """As that of a network of convolutions."""
    return Space(
        (
            Slot((None, choice("prune.structured"))),
            Slot((None, choice("distill.kd"))),
            Slot((choice("quantize.int8-static"), choice("quantize.auto"), None)),
        )
    )


SEARCHED = [name for name in registry.rows() if registry.get(name).searched is not None]


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("last", [False, True])
def test_both_ends_of_every_range_are_options_that_the_method_takes(name: str, last: bool, tmp_path: Path) -> None:
    cut = () if not choice(name).recovers else (Slot((choice("prune.structured"),)),)
    space = Space((*cut, Slot((choice(name),))))
    steps = space.steps(space.pick(Ends(last)))
    data = tmp_path / "d.npz"
    data.write_bytes(b"")
    document = {"steps": steps, "data": str(data), "model": str(tmp_path), "arch": "a:B"}
    assert parse_recipe(document, "x", allow_code=True).steps[-1].stage.name() == name


def test_a_method_varies_the_fields_that_declare_a_range() -> None:
    found = choice("prune.structured").ranges
    assert set(found) == {"target_macs"}
    assert found["target_macs"] == tunable(registry.get("prune.structured"), "target_macs")


def test_what_recovers_is_asked_for_only_where_something_was_cut() -> None:
    values = whole().pick(Ends(last=False))
    assert values == {"prune.structured": NONE, "quantize": "quantize.int8-static"}
    assert "distill.kd.epochs" in whole().pick(Ends(last=True))


def test_the_first_look_leaves_recovery_out_and_takes_the_cheap_options() -> None:
    space = Space((whole().slots[0], whole().slots[1], Slot((choice("quantize.auto"),))))
    values = space.pick(Ends(last=True))
    assert [next(iter(step)) for step in space.steps(values)] == ["prune.structured", "distill.kd", "quantize.auto"]
    first = space.steps(values, preview=True)
    assert [next(iter(step)) for step in first] == ["prune.structured", "quantize.auto"]
    assert first[1]["quantize.auto"]["preset"] == "fast"


def test_too_little_time_to_train_leaves_training_out() -> None:
    assert whole().trains()
    assert not whole().at_most(0.5).trains()
    limited = whole().at_most(3.7).slots[1].choices[1]
    assert limited is not None and limited.ranges["epochs"].high == 3


def test_only_some_kinds() -> None:
    found = whole().only(["quantize"])
    assert [slot.name for slot in found.slots] == ["quantize"]
    with pytest.raises(UsageError, match="nothing of that kind"):
        whole().only(["lora"])


def test_a_space_that_was_written_is_read_as_the_same(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(whole().document()), encoding="utf-8")
    found = read_space(path)
    assert found == whole()
    assert list(assignments(found)) == list(assignments(whole()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: 3", "expected steps, a list"),
        ("steps: [none]", "there is no method 'none'"),
        ("steps: [{one-of: [none]}]", "names no method"),
        ("steps: [{quantize.auto: {colour: 3}}]", "no option 'colour'"),
        ("steps: [{quantize.auto: {target-bits: {from: 5, to: 3}}}]", "expected from, to"),
        ("steps: [{quantize.auto: {target-bits: {any-of: []}}}]", "any-of and a list"),
        ("steps: [{quantize.auto: {}, preview: 3}]", "preview: expected"),
    ],
)
def test_a_space_that_says_nothing_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        read_space(path)


def test_cheap_candidates_come_first() -> None:
    steps = [whole().steps(values) for values in assignments(whole())]
    assert [len(found) for found in steps] == sorted(len(found) for found in steps)
    # A cut is queued with what recovers: its first look is the cut alone.
    cut = next(found for found in steps if "prune.structured" in found[0])
    assert [next(iter(step)) for step in cut] == ["prune.structured", "distill.kd", "quantize.int8-static"]
    assert [next(iter(found[0])) for found in steps[:2]] == ["quantize.int8-static", "quantize.auto"]
