"""Which channels go, how many, and what the refit makes good."""

from __future__ import annotations

import copy
import sys
from typing import Any, get_args

import pytest
import torch
from prune_nets import Grouped, Mlp, Plain, Residual, images, made
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.ops.macs import count_macs
from compresskit.ops.prune.allocate import by_share, widths_of
from compresskit.ops.prune.graph import Group, Member
from compresskit.ops.prune.rewrite import rewrite_shortcuts
from compresskit.ops.prune.score import Criterion
from compresskit.ops.prune.structured import PrunePlan, PruneSettings, Ranking, amounts, apply, plan
from compresskit.ops.shrinking import CalibrationData
from compresskit.stage import silent


def seen(count: int = 64) -> CalibrationData:
    batches = [{"x": images(32, seed)} for seed in range(count // 32)]
    labels = [torch.arange(32) % 5 for _ in batches]
    return CalibrationData({"x": images(2)}, batches, lambda module, batch: module(batch["x"]), True, labels)


def pruned(
    net: nn.Module, target: float, settings: PruneSettings, on: CalibrationData
) -> tuple[nn.Module, PrunePlan, dict[str, Any]]:
    base = amounts(net, on)
    found = plan(net, on, settings, silent)
    kept, _ = found.at(target, found.cost("macs", base, on.example))
    return net, found, apply(net, found, kept, on, silent)


@pytest.mark.parametrize("criterion", get_args(Criterion))
@pytest.mark.parametrize("ranking", get_args(Ranking))
def test_every_criterion_meets_the_target(criterion: Criterion, ranking: Ranking) -> None:
    net = made(Residual)
    rewrite_shortcuts(net, lambda module: module(images()))
    on = seen(32)
    before = sum(count_macs(net, on.example).values())
    if criterion == "bn-scale":  # the stem has no normalization of its own, its group has
        net.stem.bias = None
    small, found, _ = pruned(net, 0.6, PruneSettings(criterion, ranking), on)
    share = sum(count_macs(small, on.example).values()) / before
    assert 0.3 < share <= 0.6
    widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 8 == 0 and width > 0 for width in widths)
    assert small(images()).isfinite().all()
    assert found.skipped["head"] == "it produces the model's output"


def test_what_is_reckoned_is_what_comes_out() -> None:
    for kind in (Plain, Residual, Grouped, Mlp):
        net = made(kind)
        on = seen(32)
        base = amounts(net, on)
        found = plan(net, on, PruneSettings(multiple=1, ranking="global", criterion="l2", refit=False), silent)
        for unit in ("macs", "params"):
            cost = found.cost(unit, base, on.example)
            kept, share = found.at(0.5, cost)
            small = copy.deepcopy(net)
            apply(small, found, kept, on, silent)
            assert amounts(small, on)[unit] / base[unit] == pytest.approx(share, rel=1e-6)


def test_the_refit_brings_the_output_back() -> None:
    net = made(Residual)
    rewrite_shortcuts(net, lambda module: module(images()))
    on = seen(128)
    original = copy.deepcopy(net)
    with torch.no_grad():
        plain, *_ = pruned(copy.deepcopy(net), 0.5, PruneSettings(refit=False), on)
        fitted, _, facts = pruned(net, 0.5, PruneSettings(), on)
        fresh = images(64, seed=99)
        errors = [(m(fresh) - original(fresh)).square().mean() for m in (plain, fitted)]
    assert errors[1] < 0.5 * errors[0]
    assert facts["after"] < facts["before"]


def test_what_is_redundant_goes_for_free() -> None:
    net = made(Mlp)
    first, second = net.layers[0], net.layers[3]
    with torch.no_grad():
        norm = net.layers[1]
        for tensor in (first.weight, first.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[16:] = tensor[:16]
        second.weight.normal_()
    on = seen(128)
    before = net(images(64, seed=99))
    settings = PruneSettings(include=["layers.0"])
    found = plan(net, on, settings, silent)
    kept = {"layers.0": found.ranked[0].kept(16)}
    assert sorted(k % 16 for k in kept["layers.0"]) == list(range(16))
    apply(net, found, kept, on, silent)
    assert (net(images(64, seed=99)) - before).abs().max() < 0.02


def test_the_same_seed_gives_the_same_model() -> None:
    states = []
    for _ in range(2):
        small, *_ = pruned(made(Plain), 0.5, PruneSettings(seed=3), seen(64))
        states.append(small.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def group(units: int, per_unit: int = 1) -> Group:
    places = tuple(tuple(range(u * per_unit, (u + 1) * per_unit)) for u in range(units))
    return Group("g", (Member("g", "out", places),))


def test_widths_are_multiples_and_never_zero() -> None:
    assert widths_of(group(32), 8) == [32, 24, 16, 8]
    assert widths_of(group(20), 8) == [20, 16, 8]
    assert widths_of(group(8), 8) == [8]
    assert widths_of(group(5), 8) == [5]
    assert widths_of(group(3), 1) == [3, 2, 1]
    assert widths_of(group(12, per_unit=4), 8) == [12, 10, 8, 6, 4, 2]
    wide = widths_of(group(11008), 8)
    assert len(wide) <= 65 and all(w % 8 == 0 for w in wide)


def test_shares_are_rounded_up() -> None:
    from compresskit.ops.prune.allocate import Ranked

    ranked = [Ranked(group(32), list(range(32)), [float(i) for i in range(32)])]
    assert by_share(ranked, {"g": ""}, 8, 0.5) == {"g": 16}
    assert by_share(ranked, {"g": ""}, 8, 0.6) == {"g": 16}
    assert by_share(ranked, {"g": ""}, 8, 1.0) == {"g": 8}
    assert ranked[0].kept(8) == list(range(24, 32))


def test_an_unreachable_target_says_what_can_be_reached() -> None:
    net = made(Residual)
    on = seen(32)
    found = plan(net, on, PruneSettings(), silent)
    with pytest.raises(UsageError, match=r"0\.01 can't be met: with the narrowest widths 0\.\d+ remains") as error:
        found.at(0.01, found.cost("macs", amounts(net, on), on.example))
    reachable = float(error.value.hint.split()[1])
    found.at(reachable, found.cost("macs", amounts(net, on), on.example))


def test_globs() -> None:
    on = seen(32)
    net = made(Plain)
    found = plan(net, on, PruneSettings(include=["conv*"], exclude=["conv2"]), silent)
    assert [g.name for g in found.groups] == ["conv1"]
    assert found.skipped["conv2"] == "excluded"
    assert found.skipped["up"] == "not included"
    assert found.skipped["conv3"].startswith("its 8 channels are too few")
    with pytest.raises(UsageError, match="no layer matches 'none'"):
        plan(net, on, PruneSettings(exclude=["none"]), silent)
    with pytest.raises(InputError, match="no channels of this model can be cut"):
        plan(net, on, PruneSettings(include=["head"]), silent)


def test_ranking_by_data_needs_data() -> None:
    none = CalibrationData({"x": images(2)}, (), lambda module, batch: module(batch["x"]))
    with pytest.raises(UsageError, match="ranking the channels needs data"):
        plan(made(Plain), none, PruneSettings(), silent)
    found = plan(made(Plain), none, PruneSettings("l2", "isomorphic"), silent)
    assert [g.name for g in found.groups] == ["conv1", "conv2", "up"]


def test_a_model_without_channels_to_cut() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x[:, :, :4, :4].flatten(1))

    with pytest.raises(InputError, match="it produces the model's output"):
        plan(made(Single), seen(32), PruneSettings(), silent)


def test_a_model_without_conv1d_needs_no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.ops.prune import rewrite

    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", None)
    rewrite.linear_to_conv1d(nn.Linear(2, 2), [])
