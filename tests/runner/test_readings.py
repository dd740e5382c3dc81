"""What could work: each command can be typed as it is shown, and saves what is said where that was counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compresskit.data.opening import open_source
from compresskit.errors import CompressKitError
from compresskit.ops.structure import regions
from compresskit.render.structure_view import command_of, saves_text
from compresskit.runner.api import method, run
from compresskit.runner.loading import load
from compresskit.runner.readings import readings
from compresskit.runner.structure import structure
from compresskit.stage import Stage

NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x):
        return x + self.two(torch.relu(self.norm(self.one(x))))

def net():
    made = nn.Sequential(nn.Conv2d(3, 8, 3), Block(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 4)).eval()
    for block in list(made)[1:4]:
        block.norm.bias.data[:3] = -50.0
    made[1].two.weight.data *= 0.01
    made[3].one.load_state_dict(made[2].one.state_dict())
    return made
"""


NOTHING: dict[str, Any] = {
    "blocks": [], "halves": [], "alike": [], "symmetry": [], "experts": [],
    "units": {"never": 0, "always": 0, "units": 0, "layers": [], "samples": 8},
    "savings": {"fold": None, "units": None, "tokens": None, "attention": None, "tie": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a net whose blocks do little, and what is found of it."""
    folder = tmp_path_factory.mktemp("readings")
    (folder / "net.py").write_text(NET)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    torch.manual_seed(0)
    torch.save(scope["net"]().state_dict(), folder / "net.pt")
    np.savez(folder / "d.npz", x=np.random.default_rng(0).normal(size=(64, 3, 10, 10)).astype("float32"))
    with pytest.MonkeyPatch.context() as patch:  # linear pieces are counted, but tell of no method
        patch.setattr(regions, "LINES", 2)
        patch.setattr(regions, "_MOST", 300)
        return folder, structure(model_of(folder), open_source(str(folder / "d.npz")))


def model_of(folder: Path) -> Any:
    return load(folder / "net.pt", arch=f"{folder / 'net.py'}:net", input_shape=(1, 3, 10, 10))


def typed(reading: dict[str, Any]) -> Stage:
    """The stage of a reading's command."""
    words, options = list(reading["options"]), dict[str, Any]()
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        options[name] = words.pop(0) if words and not words[0].startswith("--") else True
    stage = method(reading["method"], **options)
    stage.check_options()
    return stage


def by_method(found: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    return {(r["method"], *r["options"]): r for r in found["readings"]}


def test_each_method_is_told_with_what_it_saves(looked: tuple[Path, dict[str, Any]]) -> None:
    found = by_method(looked[1])
    stages = {reading["method"]: typed(reading) for reading in found.values() if reading["method"]}
    assert {"substitute.collapse", "prune.depth", "substitute.fold", "share.tie"} <= set(stages)
    units = found["substitute.fold", "--units"]
    assert "9 of 24 units were never on" in units["finding"] and "9 can be removed" in units["finding"]
    assert set(found["substitute.fold",]["saves"]) == {"macs", "parameters"}
    told = [max(r["saves"].values(), default=0.0) for r in looked[1]["readings"] if r["method"]]
    assert told == sorted(told, reverse=True), "those that save most come first"
    assert saves_text(units).startswith("saves ") and saves_text({"saves": {}}) == ""
    assert command_of(units, ["a b.pt"]) == "compresskit substitute 'a b.pt' --method fold --units"


def test_the_commands_save_what_is_told(looked: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, found = looked
    data = open_source(str(folder / "d.npz"))
    for (name, *options), reading in by_method(found).items():
        if not name:
            continue
        stage = typed(reading)
        if name == "substitute.collapse":
            stage = stage.model_copy(update={"guard": "size", "samples": 32})
        report = run(model_of(folder), [stage], tmp_path / "out", data=data, bench=False, export=False, force=True)
        before, after = report.models[0], report.models[1]
        saved = {"macs": 1 - after.macs / before.macs, "parameters": 1 - after.parameters / before.parameters}
        for unit, share in reading["saves"].items():
            exact = saved[unit] if options != ["--units"] else saved[unit] - _folded(found)[unit] * (unit != "macs")
            assert exact == pytest.approx(share, abs=0.01), (name, options, unit)


def _folded(found: dict[str, Any]) -> dict[str, float]:
    return by_method(found)["substitute.fold",]["saves"]


def test_a_method_that_is_not_there_leaves_only_the_finding() -> None:
    assert readings(NOTHING) == []
    short = {"tokens": 128, "window": 64, "from": 272, "products": -0.03}
    (row,) = readings(NOTHING | {"savings": NOTHING["savings"] | {"attention": short}})
    assert row["method"] == "" and row["saves"] == {} and "from 272 tokens on: these samples have 128" in row["finding"]
    paying = short | {"tokens": 512, "products": 0.2}
    (row,) = readings(NOTHING | {"savings": NOTHING["savings"] | {"attention": paying}})
    assert (row["method"], row["saves"]) == ("substitute.attention", {"products": 0.2}) and typed(row)
    mixture = {"name": "m", "experts": 8, "effective": 3.2, "parameters": 0.6}
    (row,) = readings(NOTHING | {"experts": [mixture]})
    assert row["options"] == ["--keep", "0.5"] and row["saves"] == {"parameters": 0.3} and typed(row)
    tie = {"layers": 3, "least": 0.95, "parameters": 0.2}
    blocks = [{"name": n, "r2": None, "by": {}, "parameters": 0.2, "rank99": 2, "width": 8} for n in "ab"]
    found = readings(NOTHING | {"savings": NOTHING["savings"] | {"tie": tie}, "blocks": blocks})
    assert {row["method"]: row["saves"] for row in found} == {"share.tie": {"parameters": 0.2}, "factorize.auto": {}}
    assert all(typed(row) for row in found)
    with pytest.raises(CompressKitError):
        typed({"method": "factorize.auto", "options": []})


@pytest.mark.parametrize(
    ("errors", "group"),
    [
        ((0.01, 0.5, 0.5, 0.5), "flip"),
        ((0.01, 0.01, 0.01, 0.5), "d2"),
        ((0.5, 0.5, 0.01, 0.01), "c4"),
        ((0.01, 0.01, 0.01, 0.01), "d4"),
        ((0.5, 0.01, 0.5, 0.5), None),
        ((0.0, 0.5, 0.5, 0.5), None),
    ],
)
def test_moves_become_the_largest_group_that_has_them(errors: tuple[float, ...], group: str | None) -> None:
    moves = ("flip left-right", "flip up-down", "half turn", "quarter turn")
    rows = [{"move": move, "error": error} for move, error in zip(moves, errors, strict=True)]
    (row,) = readings(NOTHING | {"symmetry": rows})
    assert row["options"] == ([] if group is None else ["--group", group]) and row["saves"] == {}
    assert group is None or typed(row)
