"""One fitted layer in the place of a block: exact where the block is linear, as near as can be elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.facts.substitute import Fitted, StandInFacts
from compresskit.ops.shrinking import CalibrationData, ShrinkSettings
from compresskit.ops.substitute.candidates import Candidate, candidates
from compresskit.ops.substitute.choose import by_cost, by_count, saved_macs
from compresskit.ops.substitute.sites import Places, Site, find
from compresskit.ops.substitute.stand_in import StandIn, replay
from compresskit.ops.substitute.walk import apply


class Residual(nn.Module):
    """Two convolutions beside a shortcut; without ``bent`` nothing between them bends, so that one does the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, end: nn.Module, *, bent: bool, wide: int = 3) -> None:
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(inputs, outputs, wide, stride, wide // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.short = nn.Identity() if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)
        self.bent, self.end = nn.ReLU(inplace=True) if bent else nn.Identity(), end

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.bent(self.norm1(self.conv1(x)))))
        y += self.short(x)
        return self.end(y)


ENDS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "none": nn.Identity,
}


def pictures(end: str = "relu", *, bent: Sequence[bool] = (False, True, False, True)) -> nn.Module:
    torch.manual_seed(1)
    make = ENDS[end]
    blocks = [
        Residual(8, 8, 1, make(), bent=bent[0]),
        Residual(8, 8, 1, make(), bent=bent[1]),
        Residual(8, 16, 2, make(), bent=bent[2]),
        Residual(16, 16, 1, make(), bent=bent[3]),
    ]
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(*blocks[:2]), nn.Sequential(*blocks[2:]), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(64, 5),
    ).eval()  # fmt: skip
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.3, 1.5)
        norm.weight.data.uniform_(0.4, 1.6)
    return module


def quiet(*_: object) -> None:
    return None


def data_of(count: int = 9, *, size: int = 24, shape: tuple[int, ...] = (3, 14, 14)) -> CalibrationData:
    torch.manual_seed(2)
    batches = [{"x": torch.randn(size, *shape)} for _ in range(count)]
    return CalibrationData({"x": batches[0]["x"][:1]}, batches, lambda module, batch: module(batch["x"]))


KINDS: tuple[Fitted, ...] = ("1x1", "3x3", "linear")


def tried(module: nn.Module, data: CalibrationData, **settings: Any) -> tuple[Places, list[Candidate]]:
    with torch.no_grad():
        places = find(module, data, ShrinkSettings(**settings), KINDS)
        return places, candidates(module, places.sites, data, quiet)


@pytest.mark.parametrize("end", ENDS)
def test_a_block_without_a_bend_is_one_convolution(end: str) -> None:
    """With stride, another width, a batch normalization after each layer, and what the block ends with."""
    module, data = pictures(end), data_of()
    places, found = tried(module, data)
    assert [s.name for s in places.sites] == ["1.0", "1.1", "2.0", "2.1"] and not places.skipped
    losses = {(c.site.name, c.kind): c.loss for c in found}
    exact = [losses.pop((name, "3x3")) for name in ("1.0", "2.0")]
    assert max(exact) < 1e-6 and min(losses.values()) > 1e-5, "damping costs no more"
    chosen = by_count(found, 2, lambda c: 1.0)
    assert {(c.site.name, c.kind) for c in chosen} == {("1.0", "3x3"), ("2.0", "3x3")}
    assert chosen[0].stand_in.end.__class__ is ENDS[end]().__class__
    with torch.no_grad():
        wanted = module(data.example["x"])
        apply(module, chosen, places.trace, data, quiet, refit=False)
        assert float((module(data.example["x"]) - wanted).norm() / wanted.norm()) < 2e-3


def test_a_model_is_not_changed_by_looking(end: str = "relu") -> None:
    module, data = pictures(end), data_of(2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tried(module, data)
    after = module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any("forward" in vars(part) for part in module.modules())


def test_what_follows_repairs_the_stream() -> None:
    """The fit of a later block undoes most of what an earlier stand-in did to what passes beside that block too."""
    lost = {}
    for refit in (False, True):
        module, data = pictures("none", bent=(False,) * 4), data_of(17)
        places, found = tried(module, data)
        chosen = [c for c in found if (c.site.name, c.kind) == ("1.0", "1x1")]
        facts = apply(module, chosen, places.trace, data, quiet, refit=refit)
        lost[refit] = facts["after"]
        assert isinstance(module.get_submodule("1.0"), StandIn)
        assert facts["kept"] == ("fitted" if refit else "stand-ins")
    assert lost[True] < 0.5 * lost[False]


def test_the_second_stand_in_sees_what_the_first_gives() -> None:
    module, data = pictures(bent=(True,) * 4), data_of(17)
    places, found = tried(module, data)
    chosen = [c for c in found if c.site.name in ("1.0", "1.1") and c.kind == "1x1"]
    facts = apply(module, chosen, places.trace, data, quiet, refit=False)
    assert facts["kept"] == "stand-ins in order" and facts["after"] < facts["before"]


def test_globs_leave_blocks_out_and_must_mean_something() -> None:
    module, data = pictures(), data_of(2)
    places, _ = tried(module, data, include=("1.*", "2.0"), exclude=("1.1",))
    assert [s.name for s in places.sites] == ["1.0", "2.0"]
    assert places.skipped == {"1.1": "excluded", "2.1": "not included"}
    with pytest.raises(UsageError, match="no layer matches 'layer'"):
        tried(module, data, exclude=("layer",))


def test_a_model_without_blocks_is_told() -> None:
    with pytest.raises(InputError, match="no sequence of blocks"):
        tried(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), data_of(1))


def test_blocks_that_nothing_smaller_can_stand_in_for_are_told() -> None:
    small = [Residual(8, 8, 1, nn.ReLU(), bent=True, wide=1) for _ in range(2)]
    module = nn.Sequential(nn.Conv2d(3, 8, 3), *small).eval()
    places = find(module, data_of(1), ShrinkSettings(), ("3x3",))
    assert set(places.skipped.values()) == {"a fitted layer of that kind would be no smaller than it"}


class Choices:
    """Candidates that were never fitted."""

    def __init__(self, *rows: tuple[str, Fitted, float, int]) -> None:
        self.found = [
            Candidate(Site(name, {}, (1,), 100, {kind: cost}), kind, None, loss)  # type: ignore[arg-type]
            for name, kind, loss, cost in rows
        ]

    @staticmethod
    def named(chosen: Sequence[Candidate]) -> set[tuple[str, str]]:
        return {(c.site.name, c.kind) for c in chosen}


def test_the_least_loss_for_what_is_saved() -> None:
    both = Choices(("a", "1x1", 0.4, 10), ("a", "3x3", 0.1, 50), ("b", "1x1", 0.2, 10), ("b", "3x3", 0.15, 50))
    assert both.named(by_count(both.found, 1, saved_macs)) == {("a", "3x3")}
    assert both.named(by_count(both.found, 2, saved_macs)) == {("a", "3x3"), ("b", "1x1")}
    assert both.named(by_cost(both.found, 130, saved_macs)) == {("a", "3x3"), ("b", "1x1")}
    assert both.named(by_cost(both.found, 150, saved_macs)) == {("a", "1x1"), ("b", "1x1")}
    assert both.named(by_cost(both.found, 45, saved_macs)) == {("a", "3x3")}
    assert both.named(by_cost(both.found, 80, saved_macs, 1)) == {("b", "1x1")}
    assert by_cost(both.found, 181, saved_macs) == [] and by_cost(both.found, 120, saved_macs, 1) == []


@pytest.mark.parametrize(
    "change, told",
    [
        ({"shape": [8, 8]}, "has no weight"),
        ({"shape": [8, 8, 3, 3]}, "has no weight"),
        ({"shape": [1 << 20, 1 << 20, 1, 1]}, "takes more than it"),
        ({"norm": "conv1"}, "has no normalization 'conv1'"),
        ({"norm": "no.such"}, "has no layer 'no.such'"),
    ],
)
def test_facts_that_do_not_fit_are_refused(change: dict[str, Any], told: str) -> None:
    fact = replace(StandInFacts(kind="1x1", shape=[8, 8, 1, 1]), **change)
    with pytest.raises(InputError, match=told):
        replay(pictures(), {"1.0": fact})
    with pytest.raises(InputError, match=r"no layer '1\.9', which was substituted"):
        replay(pictures(), {"1.9": fact})
