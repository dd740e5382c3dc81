"""Factorization: at full rank nothing changes, and what is lost is what the spectrum says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError, MachineError, UsageError
from compresskit.ops.factorize.apply import apply
from compresskit.ops.factorize.candidates import FactorizeSettings, break_even, find
from compresskit.ops.factorize.chain import Factorized
from compresskit.ops.factorize.cp import Cp
from compresskit.ops.factorize.metric import Metric
from compresskit.ops.factorize.output_gradients import output_gradients
from compresskit.ops.factorize.plan import ALGORITHMS, plan
from compresskit.ops.factorize.replay import merge
from compresskit.ops.factorize.spectrum import effective_rank, spectrum
from compresskit.ops.factorize.svd import Svd
from compresskit.ops.quantize.sensitivity import distances
from compresskit.ops.shrinking import CalibrationData
from compresskit.stage import silent


def conv(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(6, 8, 3, **options)


def moments(size: int, seed: int = 1) -> Tensor:
    """Second moments of something correlated."""
    x = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x * torch.logspace(0, -2, size, dtype=torch.float64)
    return x.T @ x / len(x)


METRICS = {
    "plain": lambda rows, columns: Metric(),
    "whitened": lambda rows, columns: Metric(moments(columns)),
    "fisher": lambda rows, columns: Metric(moments(columns), moments(rows, 2)),
}
CASES: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "svd": (lambda: nn.Linear(12, 20), (12,), (5, 12)),
    "svd 1x1": (lambda: nn.Conv2d(6, 8, 1, stride=2), (6,), (2, 6, 9, 9)),
    "tucker": (lambda: conv(padding=1, stride=2), (6, 8), (2, 6, 9, 9)),
    "tucker of Conv1d": (lambda: nn.Conv1d(6, 8, 5, padding=2), (6, 8), (2, 6, 9)),
    "spatial": (lambda: conv(padding=(1, 2), stride=(2, 1), dilation=(1, 2)), (18,), (2, 6, 9, 9)),
    "spatial same": (lambda: conv(padding="same", padding_mode="reflect", bias=False), (18,), (2, 6, 9, 9)),
}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def taken(layer: Any, kind: Any, ranks: tuple[int, ...], metric: Metric) -> Factorized:
    return Factorized(layer, kind, ranks).fill(ALGORITHMS[kind](layer.weight, metric).factors(ranks), layer.bias)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_at_full_rank_nothing_changes(case: str, metric: str) -> None:
    build, full, shape = CASES[case]
    layer, kind = build(), case.split()[0]
    known = METRICS[metric](layer.weight.shape[0], layer.weight[0].numel())
    x = torch.randn(shape)
    made = taken(layer, kind, full, known)
    assert relative(made(x), layer(x)) <= 1e-5
    assert relative(made.dense()(x), layer(x)) <= 1e-5
    assert type(made.dense()) is type(layer)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_merged_computes_the_same(case: str) -> None:
    build, full, shape = CASES[case]
    layer = build()
    made = taken(layer, case.split()[0], tuple(max(1, r // 2) for r in full), Metric())
    x = torch.randn(shape)
    assert relative(made.dense()(x), made(x)) <= 1e-6
    assert relative(made(x), layer(x)) > 1e-3


@pytest.mark.parametrize("metric", METRICS)
@torch.no_grad()
def test_what_is_lost_is_the_tail_of_the_squares(metric: str) -> None:
    layer = nn.Linear(12, 20)
    known = METRICS[metric](20, 12)
    found = Svd(layer.weight, known)
    outer, inner = known.roots(20, 12)
    for rank in (1, 5, 11, 12):
        right, left = found.factors((rank,))
        error = outer.forth @ (layer.weight.double() - left @ right) @ inner.forth
        assert float(error.square().sum()) == pytest.approx(found.lost((rank,)), rel=1e-6, abs=1e-12)
    values = torch.linalg.svdvals(outer.forth @ layer.weight.double() @ inner.forth)
    assert found.lost((5,)) == pytest.approx(float(values[5:].square().sum()))


@torch.no_grad()
def test_whitened_loses_less_of_the_output_than_plain() -> None:
    layer = nn.Linear(16, 16, bias=False)
    x = torch.randn(400, 16) * torch.logspace(0, -2, 16)
    gram = (x.T @ x / len(x)).double()
    wanted = layer(x)
    plain, white = (taken(layer, "svd", (4,), metric)(x) for metric in (Metric(), Metric(gram)))
    assert (white - wanted).norm() < 0.9 * (plain - wanted).norm()


@pytest.mark.parametrize("kind", ["tucker", "spatial"])
@torch.no_grad()
def test_a_convolution_of_low_rank_is_found_exactly(kind: Any) -> None:
    layer = conv(padding=1)
    ranks = (2, 3) if kind == "tucker" else (2,)
    small = Factorized(layer, kind, ranks)
    for part in small:
        nn.init.normal_(part.get_parameter("weight"))
    layer = small.dense()
    metric = Metric(moments(54), moments(8, 2))
    x = torch.randn(2, 6, 9, 9)
    assert relative(taken(layer, kind, ranks, metric)(x), layer(x)) <= 1e-5
    assert ALGORITHMS[kind](layer.weight, metric).lost(ranks) <= 1e-9 * ALGORITHMS[kind](layer.weight, metric).total


@torch.no_grad()
def test_cp_finds_a_sum_of_outer_products() -> None:
    pytest.importorskip("tensorly")
    layer = conv(padding=1)
    small = Factorized(layer, "cp", (2,))
    for part in small:
        nn.init.normal_(part.get_parameter("weight"))
    layer = small.dense()
    x = torch.randn(2, 6, 9, 9)
    made = taken(layer, "cp", (2,), Metric(moments(54), moments(8, 2)))
    assert relative(made(x), layer(x)) <= 1e-2
    assert relative(made.dense()(x), made(x)) <= 1e-6


def test_without_tensorly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorly", None)
    with pytest.raises(MachineError, match="tensorly") as caught:
        Cp(conv().weight, Metric())
    assert "compresskit[factorize]" in caught.value.hint


class Net(nn.Module):
    """Two ways to the output; the second hardly matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud, self.quiet, self.last = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.loud(x)) + 0.01 * torch.tanh(self.quiet(x)))


def seen(count: int = 256) -> CalibrationData:
    x = torch.randn(count, 32, generator=torch.Generator().manual_seed(3)) * torch.logspace(0, -1, 32)
    batches = [{"x": part} for part in x.split(count // 16)]
    return CalibrationData({"x": x[:1]}, batches, lambda module, batch: module(batch["x"]))


def test_gradients_tell_what_an_error_does_to_the_output() -> None:
    net, data = Net().eval(), seen()
    found = output_gradients(net, ["loud", "quiet"], data.batches, data.forward, silent)
    error = 1e-3 * torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    change = {name: lambda w: w + error for name in ("loud", "quiet")}
    measured = distances(net, change, data.batches, data.forward, silent)
    x = torch.cat([b["x"] for b in data.batches])
    gram = (x.T @ x / len(x)).double()
    for name, g in found.items():
        told = float(torch.trace(g @ error.double() @ gram @ error.double().T))
        assert told == pytest.approx(measured[name], rel=0.5)
    assert not any(p.grad is not None for p in net.parameters())


def test_a_budget_takes_from_the_layer_that_matters_least() -> None:
    net, data = Net().eval(), seen()
    made = plan(net, data, FactorizeSettings(multiple=4), silent)
    choice = made.within(0.7, "params")
    assert made.share_of(choice, "params") <= 0.7
    assert choice["quiet"].ranks < choice["loud"].ranks if "loud" in choice else "quiet" in choice
    whole = sum(layer.weight.numel() for layer in (net.loud, net.quiet, net.last))
    apply(net, made, choice, data, silent)
    left = sum(p.numel() for name, p in net.named_parameters() if name.endswith("weight"))
    assert left / whole == pytest.approx(made.share_of(choice, "params"))


def test_a_refit_brings_the_output_nearer() -> None:
    data = seen(8192)
    made = plan(net := Net().eval(), data, FactorizeSettings(weighting="inputs", multiple=4), silent)
    facts = apply(net, made, made.within(0.5, "params"), data, silent)
    assert facts["after"] <= facts["before"]
    assert facts["kept"] == "fitted"


def test_a_target_out_of_reach_says_what_is_within() -> None:
    made = plan(Net().eval(), seen(), FactorizeSettings(multiple=8), silent)
    least = made.least("params")
    with pytest.raises(UsageError, match=r"`budget` 0\.01 can't be met: with the smallest ranks 0\.\d+") as caught:
        made.within(0.01, "params")
    assert f"{least + 5e-4:.3f}" in caught.value.hint
    assert made.share_of(made.within(least + 5e-4, "params"), "params") <= least + 5e-4


def test_only_ranks_below_break_even_are_options() -> None:
    data = seen()
    found = find(Net().eval(), data.run, FactorizeSettings(["svd"], multiple=4))
    assert [c.name for c in found.candidates] == ["loud", "quiet", "last"]
    for c in found.candidates:
        even = break_even(*c.layer.weight.shape)
        assert [o.ranks[0] for o in c.options] == [r for r in range(4, 49, 4) if r < even]
        assert all(o.params == r * sum(c.layer.weight.shape) for o in c.options for r in o.ranks)
    assert (
        find(Net().eval(), data.run, FactorizeSettings(["svd"], multiple=8))
        .skipped["last"]
        .startswith("too small: no rank")
    )


def test_a_strided_tucker_that_multiplies_more_is_no_option() -> None:
    layer = nn.Conv2d(32, 32, 3, stride=2, padding=1)
    x = torch.randn(1, 32, 8, 8)
    whole = find(
        nn.Sequential(layer, nn.Flatten()), lambda m: m(x), FactorizeSettings(["tucker"], multiple=1)
    ).candidates[0]
    assert all(o.macs < whole.macs and o.params < whole.params for o in whole.options)
    # A 1×1 in front works at four times as many places.
    narrow = Factorized(layer, "tucker", (24, 32))
    assert sum(p.numel() for p in narrow.parameters()) < whole.params
    assert (24, 32) not in [o.ranks for o in whole.options]
    assert (4, 32) in [o.ranks for o in whole.options]


class Odd(nn.Module):
    """Layers that must be left alone, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight
        self.read, self.idle, self.asked = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.plain, self.small = nn.Linear(32, 32), nn.Linear(32, 2)
        self.depth = nn.Conv1d(32, 32, 3, groups=32, padding=1)
        self.up = nn.ConvTranspose1d(32, 32, 2)
        self.point = nn.Conv1d(32, 32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x @ self.read.weight.T + self.asked(x).to(self.asked.weight.dtype)
        x = self.up(self.point(self.depth(self.plain(x).mT))).mT
        return self.head(x) + self.small(x).sum()


def test_what_cannot_be_factorized_is_listed_with_the_reason() -> None:
    found = find(Odd().eval(), lambda m: m(torch.arange(6).reshape(1, 6)), FactorizeSettings(["svd"], multiple=4))
    assert [c.name for c in found.candidates] == ["plain", "point"]
    reasons = {
        "embed": "an embedding",
        "head": "its weight is that of 'embed'",
        "read": "never called",
        "idle": "never called",
        "asked": "the model's code reads the layer itself",
        "small": "too small",
        "depth": "depthwise",
        "up": "only Linear, Conv1d and Conv2d",
    }
    assert {name: reason for name, reason in reasons.items() if reason not in found.skipped[name]} == {}
    assert set(found.skipped) == set(reasons)


def test_each_method_names_the_layers_that_are_of_another_kind() -> None:
    net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 32))
    x = torch.randn(1, 8, 4, 4)
    linear, convs = (find(net, lambda m: m(x), FactorizeSettings([kind], multiple=2)) for kind in ("svd", "tucker"))  # type: ignore[list-item]
    assert "`method` tucker or spatial" in linear.skipped["0"]
    assert [c.name for c in linear.candidates] == ["2"]
    assert "`method` svd" in convs.skipped["2"]
    assert [c.name for c in convs.candidates] == ["0"]


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="no Linear layer and no convolution"):
        find(nn.Sequential(nn.LayerNorm(4)), lambda m: m(torch.randn(1, 4)), FactorizeSettings(["svd"], multiple=4))


def test_a_rank_above_the_matrix_names_the_layer() -> None:
    with pytest.raises(UsageError, match=r"`rank` 40 is above the rank of 'loud', whose matrix has 32"):
        find(Net().eval(), seen().run, FactorizeSettings(["svd"], multiple=8, rank=40))


def test_what_is_not_factorized_cannot_be_merged() -> None:
    with pytest.raises(UsageError, match="nothing to merge"):
        merge(Net())


def test_the_spectrum_of_known_matrices() -> None:
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Conv2d(2, 4, 3, groups=2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(8))
        net[1].weight.copy_(torch.outer(torch.randn(8), torch.randn(8)))
    even, one = spectrum(net)
    assert (even["effective_rank"], one["effective_rank"]) == (8, pytest.approx(1, abs=0.01))
    assert (even["rank_for"], one["rank_for"]) == ({"90": 8, "95": 8, "99": 8}, {"90": 1, "95": 1, "99": 1})
    assert even["break_even"] == 4
    assert even["kept"] == {"80": 0.375, "60": 0.25, "40": 0.125}
    assert one["kept"] == {"80": 1, "60": 1, "40": 1}
    values = torch.tensor([3.0, 1.0, 0.0])
    assert effective_rank(values) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_a_transposed_convolution_is_counted_by_its_input() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.Conv2d(32, 32, 1))
    found = find(module, lambda m: m(torch.zeros(1, 32, 8, 8)), FactorizeSettings(("svd",)))
    assert found.total["macs"] == 32 * 32 * 16 * 64 + 32 * 32 * 256


def test_what_rounding_leaves_says_nothing_of_other_ranks() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight[20:] = 0
    module = nn.Sequential(layer, nn.Linear(64, 8))
    batches = [{"input": torch.randn(64, 64)}]
    seen = CalibrationData(batches[0], batches, lambda m, b: m(b["input"]))
    made = plan(module, seen, FactorizeSettings(("svd",), multiple=4), silent)
    lost = [made.lost["0"][o] for o in sorted(made.lost["0"], key=lambda o: o.ranks)]
    assert lost == sorted(lost, reverse=True) and lost[0] < 2 and lost[-1] < 1e-6
