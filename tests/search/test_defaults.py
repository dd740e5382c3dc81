"""The space of a model where the user names none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.model import Applied, Arch, Card, InputSpec, Model
from compresskit.search.defaults import Aims, default_space

FOUND: dict[str, Any] = {"totals": {"bytes": 1000}, "layers": []}
INPUTS = (InputSpec("x", "float32", ("batch", 3, 8, 8)),)


def model(*history: Applied) -> Model:
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
    return Model(module, Card("torch", inputs=INPUTS, task="classification", history=history), Path("net.pt"))


def supernet(order: dict[str, list[int]], blocks: list[str], least: float) -> Applied:
    facts = {"order": order, "blocks": blocks, "least": least, "multiple": 8}
    return Applied("distill.supernet", {}, {"elastic": facts})


@pytest.mark.parametrize(
    ("order", "blocks", "least", "ranges"),
    [
        ({"0": [1, 0]}, ["a", "b"], 0.25, {"width": (0.25, 1.0), "drop": (0, 2)}),
        ({"0": [1, 0]}, [], 0.33, {"width": (0.35, 1.0)}),
        ({}, ["a"], 0.5, {"drop": (0, 1)}),
    ],
)
def test_of_a_supernet_its_trained_parts_are_tried_and_nothing_else_is_cut(
    order: dict[str, list[int]], blocks: list[str], least: float, ranges: dict[str, tuple[float, float]]
) -> None:
    space = default_space(model(supernet(order, blocks, least)), FOUND, "cnn")
    assert space.names() == ["prune.subnet", "quantize"] and not space.trains()
    subnet = space.slots[0].choices[1]
    assert subnet is not None
    assert {name: (found.low, found.high) for name, found in subnet.ranges.items()} == ranges


@pytest.mark.parametrize("history", [(), (supernet({"0": [1, 0]}, [], 0.5), Applied("prune.subnet", {}))])
def test_only_a_supernet_has_parts(history: tuple[Applied, ...]) -> None:
    assert "prune.subnet" not in default_space(model(*history), FOUND, "cnn").names()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


def test_blocks_are_dropped_or_replaced_in_one_place() -> None:
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Sequential(*(Block() for _ in range(4))), nn.Flatten(), nn.Linear(288, 4)
    )
    found = default_space(replace(model(), body=body), FOUND, "cnn")
    choices = [choice for choice in found.slots[0].choices if choice]
    assert [choice.method for choice in choices] == ["prune.depth", "substitute.collapse"]
    assert [{name: (r.low, r.high) for name, r in choice.ranges.items()} for choice in choices] == [
        {"drop": (1, 3)}, {"count": (1, 3)},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("aims", "kind", "named"),
    [
        (Aims(classes=True), "cnn", {"route.exits", "quantize.palette"}),
        (Aims(("latency",), classes=True), "cnn", {"route.exits"}),
        (Aims(("size",), classes=True), "cnn", {"quantize.palette"}),
        (Aims(), "cnn", {"quantize.palette"}),  # nothing tells that the outputs are classes
        (Aims(classes=True), "tiny", {"quantize.palette"}),
    ],
)
def test_what_gains_one_thing_is_tried_where_that_is_wanted(aims: Aims, kind: str, named: set[str]) -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), *(Block() for _ in range(4)), nn.Flatten(), nn.Linear(288, 4))
    space = default_space(replace(model(), body=body), FOUND, kind, aims)
    methods = {choice.method for slot in space.slots for choice in slot.choices if choice}
    assert methods & {"route.exits", "route.experts", "quantize.palette", "share.tie"} == named
    if "route.exits" in named:
        assert space.names()[-2:] == ["route.exits", "quantize"] and "distill.kd" in methods


def test_a_model_without_blocks_gets_no_exits() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    space = default_space(replace(model(), body=body), FOUND, "cnn", Aims(classes=True))
    assert "route.exits" not in space.names()


@pytest.mark.parametrize(("goals", "tried"), [(("size",), True), (("latency",), False)])
def test_of_a_mixture_experts_go_for_size(goals: Any, tried: bool) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=16, num_key_value_heads=2, num_local_experts=4, **sizes)
    card = Card(
        "torch",
        Arch("transformers"),
        inputs=(InputSpec("input_ids", "int64", ("batch", "sequence")),),
        task="causal-lm",
    )
    mixture = Model(transformers.MixtralForCausalLM(config), card, Path("moe"))
    space = default_space(mixture, FOUND, "causal-lm", Aims(goals))
    assert ("route.experts" in space.names()) is tried
