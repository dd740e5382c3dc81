"""Bits go where they help: exact on models whose sensitivities are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresskit.errors import InputError
from compresskit.ops.packed.grid import Grid
from compresskit.ops.quantize.auto import Wanted, plan_bits
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.sensitivity import Layer, allocate, distances


class Sum(nn.Module):
    """Two layers side by side; the second counts ``gain`` times as much."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quiet, self.loud = nn.Linear(64, 64), nn.Linear(64, 64)
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quiet(x) + self.gain * self.loud(x)


def forward(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = module(batch)
    return out


def silent(*_: object) -> None:
    pass


def test_a_distance_is_what_the_change_does_to_the_output() -> None:
    module, x = Sum(10.0).eval(), torch.randn(32, 64)
    before = module(x).detach()
    found = distances(module, {"quiet": lambda w: w * 0, "loud": lambda w: w}, [x], forward, silent)
    alone = (module.quiet.weight @ x.T).T.detach()
    assert found["quiet"] == pytest.approx(float(alone.square().sum() / before.square().sum()), rel=1e-4)
    assert found["loud"] == 0


def test_the_module_is_as_before() -> None:
    module, x = Sum(10.0).eval(), torch.randn(8, 64)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    distances(module, {"quiet": lambda w: w + 1}, [x], forward, silent)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_the_louder_layer_gets_the_bits() -> None:
    module, x = Sum(30.0).eval(), torch.randn(32, 64)
    layers = {"quiet": module.quiet, "loud": module.loud}
    plan = plan_bits(module, layers, lambda _s, b: Grid(b, 32), Wanted(4, target_bits=6.3), [x], forward, silent)
    assert plan.bits.get("loud", 4) > plan.bits.get("quiet", 4)
    assert plan.mean <= 6.3
    assert "loud" in plan.notes[0]


def test_plain_bits_stay_plain_when_no_layer_can_be_wider() -> None:
    module, x = Sum(1.0).eval(), torch.randn(8, 64)
    layers = {"quiet": module.quiet, "loud": module.loud}
    plan = plan_bits(module, layers, lambda _s, b: Grid(b, 32), Wanted(4), [x], forward, silent)
    assert plan.bits == {}


@pytest.mark.parametrize("budget", [3.0, 3.7, 4.5, 6.0, 8.5])
def test_the_budget_is_kept_and_used(budget: float) -> None:
    torch.manual_seed(1)
    names = [f"l{i}" for i in range(12)]
    layers = [Layer(n, float(torch.rand(()) ** 3), {b: 100 * b for b in (2, 3, 4, 8)}) for n in names]
    bits = allocate(layers, 4, int(12 * 100 * budget))
    used = sum(100 * b for b in bits.values())
    assert used <= 12 * 100 * budget
    assert used + 400 >= min(12 * 100 * budget, 12 * 800)
    ranked = sorted(layers, key=lambda layer: layer.distance)
    assert bits[ranked[-1].name] >= bits[ranked[0].name]


def test_a_size_that_cant_be_kept_is_said() -> None:
    module, x = Sum(1.0).eval(), torch.randn(8, 64)
    layers = {"quiet": module.quiet, "loud": module.loud}
    plan = plan_bits(module, layers, lambda _s, b: Grid(b, 32), Wanted(4, max_bytes=500), [x], forward, silent)
    assert plan.bits == {}
    assert "no choice" in plan.notes[0]
    with pytest.raises(InputError, match="2 bits take"):
        plan_bits(module, layers, lambda _s, b: Grid(b, 32), Wanted(4, target_bits=2.0), [x], forward, silent)


def test_a_quality_limit_widens_until_it_is_kept() -> None:
    module, x = Sum(1.0).eval(), torch.randn(64, 64)
    before = module(x).detach()
    layers = {"quiet": module.quiet, "loud": module.loud}

    def within(model: nn.Module) -> tuple[bool, str]:
        error = float((model(x).detach() - before).square().sum() / before.square().sum())
        return error < 1e-3, f"{error:.4f}"

    plan = plan_bits(module, layers, lambda _s, b: Grid(b, 32), Wanted(4, within=within), [x], forward, silent)
    assert plan.bits
    assert "already meets the quality limit" in plan.notes[1]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_planned_bytes_are_those_of_a_packed_weight(bits: int) -> None:
    grid = Grid(bits, 32)
    assert grid.nbytes((48, 96)) == quantize_rtn(torch.randn(48, 96), grid).nbytes()


def test_known_blocks_are_passed_over_and_nothing_changes() -> None:
    torch.manual_seed(0)
    calls: list[int] = []

    class Counted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(x)

    net = nn.Sequential(*(nn.Sequential(Counted(16, 16), nn.ReLU()) for _ in range(4)), Counted(16, 3)).eval()
    x = torch.randn(8, 16)
    names = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    found = distances(net, dict.fromkeys(names, lambda w: w * 1.1), [x], forward, silent)
    assert len(calls) == 2 * 5 + (5 + 4 + 3 + 2 + 1)
    before = net(x).detach()
    for name in names:
        weight = net.get_submodule(name).get_parameter("weight")
        kept = weight.data
        weight.data = kept * 1.1
        error = (net(x).detach() - before).square().sum() / before.square().sum()
        weight.data = kept
        assert found[name] == pytest.approx(float(error), rel=1e-5)


def test_scores_are_compared_as_distributions() -> None:
    """A constant added to all scores changes them, but nothing that is predicted."""
    net, x = nn.Linear(8, 5), torch.randn(16, 8)
    shift = {"": lambda w: w + torch.ones_like(w)}
    plain = distances(net, shift, [x], forward, silent)
    scored = distances(net, shift, [x], forward, silent, scores=True)
    assert plain[""] > 0.1
    assert scored[""] == pytest.approx(0, abs=1e-6)
    before, after = net(x).detach().log_softmax(-1), (net(x) * 1.5 - 0.5 * net.bias).detach().log_softmax(-1)
    found = distances(net, {"": lambda w: w * 1.5}, [x], forward, silent, scores=True)
    assert found[""] == pytest.approx(float((before.exp() * (before - after)).sum(-1).mean()), rel=1e-4)


class Masked(nn.Linear):
    """Scores of which one class is never allowed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).masked_fill(torch.arange(self.out_features) == 1, -torch.inf)


def test_masked_scores_and_single_scores_have_a_distance() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    near, far = (
        [
            distances(net, {"": lambda w, gain=gain: w * gain}, [x], forward, silent, scores=scores)[""]
            for gain in (1.1, 3.0)
        ]
        for net, scores in ((Masked(8, 5), True), (nn.Linear(8, 1), True))
    )
    assert 0 < near[0] < near[1] < 1e5 and 0 < far[0] < far[1] < 1e5
    plain = distances(Masked(8, 5), {"": lambda w: w * 3}, [x], forward, silent)[""]
    assert 0 < plain < 1e5

    class Flat(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, 0]

    assert distances(Flat(8, 1), {"": lambda w: w * 3}, [x], forward, silent, scores=True)[""] > 0


@pytest.mark.parametrize("scores", [False, True])
def test_a_layer_whose_rounding_breaks_the_model_gets_bits(scores: bool) -> None:
    found = distances(
        nn.Linear(8, 5), {"": lambda w: w * torch.nan}, [torch.randn(4, 8)], forward, silent, scores=scores
    )
    assert 1e3 < found[""] < float("inf")
