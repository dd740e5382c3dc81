"""Groups of channels: masked and cut models compute the same, and facts alone rebuild what was cut."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from prune_nets import NETS, Mlp, Normed, Residual, images, made
from torch import nn

from compresskit.errors import InputError
from compresskit.facts import read_facts, to_json
from compresskit.facts.prune import StructuredFacts
from compresskit.ops.prune.cut import cut, mask
from compresskit.ops.prune.dependencies import find_groups
from compresskit.ops.prune.graph import Group
from compresskit.ops.prune.limit import OutOfTime, time_limit
from compresskit.ops.prune.replay import facts_of, replay, widths
from compresskit.ops.prune.rewrite import replay_shortcuts, rewrite_shortcuts
from compresskit.ops.prune.trial import proven


def run(module: nn.Module) -> Any:
    return module(images())


def groups_of(net: nn.Module) -> tuple[list[Group], dict[str, str]]:
    found, skipped = find_groups(net, run)
    groups, bad = proven(net, run, found)
    return groups, skipped | bad


@pytest.mark.parametrize("kind", NETS)
def test_masked_is_cut_and_facts_rebuild_it(kind: Callable[[], nn.Module]) -> None:
    net = made(kind)
    before = net(images())
    rewritten = rewrite_shortcuts(net, run)
    assert torch.allclose(net(images()), before, rtol=0, atol=1e-6)
    groups, _ = groups_of(net)
    assert groups
    was = widths(net)
    kept = {g.name: sorted(torch.randperm(g.units)[: max(1, g.units // 3)].tolist()) for g in groups}
    masked, smaller = copy.deepcopy(net), copy.deepcopy(net)
    mask(masked, groups, kept)
    cut(smaller, groups, kept)
    assert sum(p.numel() for p in smaller.parameters()) < 0.7 * sum(p.numel() for p in net.parameters())
    assert (masked(images()) - smaller(images())).abs().max() <= 1e-5
    assert (net(images()) - smaller(images())).abs().max() > 1e-3

    rewritten_json = {name: [to_json(made) for made in all_of] for name, all_of in rewritten.items()}
    facts = json.loads(json.dumps({"layers": facts_of(smaller, was, []), "rewritten": rewritten_json}))
    again = made(kind, seed=5)
    replay(again, read_facts(StructuredFacts, facts))
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again.eval()(images()), smaller(images()))


def test_every_layer_is_in_a_group_or_listed() -> None:
    for kind in NETS:
        net = made(kind)
        rewrite_shortcuts(net, run)
        groups, skipped = groups_of(net)
        given = {m.layer for g in groups for m in g.of("out", "both")}
        layers = {n for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))}
        listed = {layer for name in skipped for layer in (name,)}
        assert layers <= given | listed, (kind, layers - given - listed)
        assert "produces the model's output" in skipped["layers.5" if kind is Mlp else "head"]


def test_channels_that_a_norm_mixes_are_left_alone() -> None:
    groups, skipped = groups_of(made(Normed))
    assert [g.name for g in groups] == ["up"]
    assert skipped["embed"] == skipped["down"] == "its channels are mixed by the normalization 'norm'"


def test_code_that_knows_its_width_is_left_alone() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(48, 32), nn.Linear(32, 16), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.one(x[:, :, :4, :4].flatten(1))).view(-1, 32)
            return self.head(torch.relu(self.two(x)))

    groups, skipped = groups_of(made(Fixed))
    assert [g.name for g in groups] == ["two"]
    assert skipped["one"]


def test_a_tied_weight_is_left_alone() -> None:
    net = made(Normed)
    net.up.weight = nn.Parameter(torch.randn(64, 32))
    net.extra = nn.Linear(32, 64)
    net.extra.weight = net.up.weight
    _, skipped = groups_of(net)
    assert skipped["up"] == "'up' shares its weight with 'extra'"


def test_damaged_facts_are_refused() -> None:
    net = made(Residual)
    rewritten = rewrite_shortcuts(net, run)
    good = {"kind": "Conv2d", "in": [16, 16], "out": [16, 8]}
    for name, fact in {
        "nowhere": good,
        "head": good,
        "first": good,
        "first.conv1": {**good, "out": [16, 0]},
        "second.conv1": good,
    }.items():
        with pytest.raises(InputError):
            facts = read_facts(StructuredFacts, {"layers": {name: fact}})
            replay(made(Residual), replace(facts, rewritten=rewritten))
    shortcut = rewritten["second"][0]
    for name, fact in (("second", replace(shortcut, into=17)), ("head", shortcut), ("gone", shortcut)):
        with pytest.raises(InputError, match="no shortcut"):
            replay_shortcuts(made(Residual), {name: [fact]})


def test_what_never_ends_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(OutOfTime), time_limit(0.2):
        while True:
            pass
    assert time.monotonic() - start < 20
    with time_limit(0.05):
        pass
    time.sleep(0.1)


def test_a_graph_that_is_not_found_in_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import compresskit.ops.prune.dependencies as graph

    def endless(*_: Any) -> Any:
        while True:
            pass

    monkeypatch.setattr(graph, "_graph", endless)
    with pytest.raises(InputError, match=r"within 0.2 s"):
        find_groups(made(Mlp), run, limit_s=0.2)


def test_a_layer_that_takes_too_many_steps_is_left_alone_and_others_are_not() -> None:
    net = made(Residual)
    whole, _ = find_groups(net, run)
    found, skipped = find_groups(net, run, effort=1200)
    assert 0 < len(found) < len(whole) and set(map(repr, found)) < set(map(repr, whole))
    assert "torch-pruning needed too many steps to find the coupled channels" in skipped.values()
    with pytest.raises(InputError, match="in as many steps as it may take"):
        find_groups(net, run, effort=8)
