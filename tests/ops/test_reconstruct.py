"""Learnt rounding, equalization and batch-norm statistics: identities, and that the output error falls."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.ops.batchnorm import recalibrate
from compresskit.ops.packed.grid import Grid, dequantize
from compresskit.ops.packed.modules import PackedLayer
from compresskit.ops.quantize.calibrated import Method, quantize_calibrated
from compresskit.ops.quantize.edges import edge_layers
from compresskit.ops.quantize.equalize import Pair, equalize, pairs
from compresskit.ops.quantize.fake import FakeWeight, faked
from compresskit.ops.quantize.gptq import quantize_gptq
from compresskit.ops.quantize.reconstruct import Effort, Shifted, reconstruct
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.stage import silent


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def forward(module: nn.Module, batch: dict[str, Tensor]) -> Any:
    return module(batch["x"])


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return net


def batches(count: int = 4, size: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(size, 3, 8, 8, generator=generator)} for _ in range(count)]


def learnt(net: nn.Module, effort: Effort, bits: int = 3, *, data: list[dict[str, Tensor]] | None = None) -> dict:
    learn = partial(reconstruct, effort=effort, progress=lambda _done, _total: None)
    method = Method(quantize_gptq, learn=lambda segment, start: learn(segment, start))
    return quantize_calibrated(net, Selection(bits, 32), method, data or batches(), forward, silent)[0]


def rounded(net: nn.Module, bits: int) -> None:
    quantize_calibrated(net, Selection(bits, 32), Method(quantize_gptq), [], forward, silent)


@torch.no_grad()
def distance(net: nn.Module, other: nn.Module, data: list[dict[str, Tensor]]) -> float:
    """Mean squared distance of what stands in front of the head."""
    parts = [[n.blocks(torch.relu(n.stem(b["x"]))) for n in (net, other)] for b in data]
    return sum(float((a - b).square().mean()) for a, b in parts) / len(parts)


@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_fake_weight_is_at_first_what_its_start_stands_for(bits: int, symmetric: bool, group: int) -> None:
    weight = torch.randn(6, 5, 3, 3)
    start = quantize_rtn(weight, Grid(bits, group, symmetric))
    term = torch.randn(6, 5, 3, 3)
    for fake in (FakeWeight(start), Shifted(start, weight), Shifted(start, weight + term, term)):
        added = 0 if getattr(fake, "term", None) is None else term
        torch.testing.assert_close(fake(weight), dequantize(start) + added, rtol=0, atol=1e-6)
        found = fake.packed(weight)
        assert torch.equal(found.codes, start.codes)
        assert torch.equal(found.scales, start.scales)


def test_what_is_packed_is_what_the_forward_pass_used() -> None:
    weight = torch.randn(6, 40)
    fake = FakeWeight(quantize_rtn(weight, Grid(4, 32)))
    with torch.no_grad():
        fake.scale.mul_(torch.rand_like(fake.scale) + 0.5)
    torch.testing.assert_close(dequantize(fake.packed(weight)), fake(weight), rtol=0, atol=1e-6)


def test_gradients_reach_weight_and_scale() -> None:
    weight = torch.randn(4, 16, requires_grad=True)
    fake = FakeWeight(quantize_rtn(weight, Grid(4, 16)))
    torch.autograd.backward(fake(weight).square().sum())
    assert weight.grad is not None and fake.scale.grad is not None
    assert weight.grad.abs().sum() > 0 and fake.scale.grad.abs().sum() > 0


def test_fakes_leave_a_layer_as_it_was() -> None:
    layer = nn.Linear(16, 4)
    weight, before = layer.weight, layer.weight.detach().clone()
    fake = FakeWeight(quantize_rtn(weight, Grid(2, 16)))
    with faked({"a": layer}, {"a": fake}):
        assert not torch.equal(layer.weight, before)
    assert layer.weight is weight and torch.equal(layer.weight, before) and type(layer) is nn.Linear


def test_learning_beats_rounding(net: nn.Module) -> None:
    original, plain = copy.deepcopy(net), copy.deepcopy(net)
    rounded(plain, 3)
    facts = learnt(net, Effort(80))
    assert set(facts["layers"]) == {"stem", "head", *(f"blocks.{i}.conv{j}" for i in (0, 1) for j in (1, 2))}
    assert all(isinstance(net.get_submodule(name), PackedLayer) for name in facts["layers"])
    unseen = batches(6)[4:]
    assert distance(net, original, unseen) < 0.5 * distance(plain, original, unseen)


def test_learning_improves_calibrated_codes(net: nn.Module) -> None:
    original, plain = copy.deepcopy(net), copy.deepcopy(net)
    effort = Effort(100, norm_lr=0.0, calibrated=True)
    tune = partial(reconstruct, effort=effort, progress=lambda _done, _total: None)
    data = batches(12)
    for module, method in (
        (plain, Method(quantize_gptq)),
        (net, Method(quantize_gptq, tune=lambda segment, start, terms: tune(segment, start, terms=terms))),
    ):
        quantize_calibrated(module, Selection(3, 32), method, data, forward, silent)
    unseen = batches(16)[12:]
    assert distance(net, original, unseen) < 0.9 * distance(plain, original, unseen)


def test_no_step_leads_away_from_plain_rounding(net: nn.Module) -> None:
    plain = copy.deepcopy(net)
    rounded(plain, 4)
    learnt(net, Effort(1, lr=1e-9, scale_lr=0.0, norm_lr=0.0), 4)
    for name in ("stem", "blocks.1.conv2", "head"):
        assert torch.equal(net.get_submodule(name).codes, plain.get_submodule(name).codes)


def test_without_norm_lr_only_codes_and_scales_change(net: nn.Module) -> None:
    original = copy.deepcopy(net)
    learnt(net, Effort(5, norm_lr=0.0))
    kept = {k: v for k, v in original.state_dict().items() if k in net.state_dict()}
    assert kept and all(torch.equal(net.state_dict()[k], v) for k, v in kept.items())


def test_the_seed_decides(net: nn.Module) -> None:
    other = copy.deepcopy(net)
    learnt(net, Effort(20, seed=3))
    learnt(other, Effort(20, seed=3))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert not any(p.grad is not None for p in net.parameters())


def test_one_sample_works(net: nn.Module) -> None:
    learnt(net, Effort(3), data=batches(1, 1))
    assert forward(net, batches(1)[0]).isfinite().all()


def test_infinite_activations_are_refused_by_name(net: nn.Module) -> None:
    net.get_submodule("blocks.0.bn1").running_var.fill_(float("nan"))
    with pytest.raises(InputError, match=r"'blocks\.0' gives NaN"):
        learnt(net, Effort(2))


def test_equalization_keeps_the_models_function(net: nn.Module) -> None:
    original, data = copy.deepcopy(net), batches(1)
    found = equalize(net, forward, data[0])
    assert found == [Pair(f"blocks.{i}.conv1", f"blocks.{i}.bn1", f"blocks.{i}.conv2") for i in (0, 1)]
    torch.testing.assert_close(forward(net, data[0]), forward(original, data[0]), rtol=1e-5, atol=1e-5)
    assert not torch.equal(net.blocks[0].conv2.weight, original.blocks[0].conv2.weight)


def test_equalized_inputs_reach_alike(net: nn.Module) -> None:
    with torch.no_grad():
        net.blocks[0].conv2.weight[:, 3] *= 10
    spread = []
    for _ in range(2):
        reach = net.blocks[0].conv2.weight.detach().abs().amax((0, 2, 3))
        spread.append(float(reach.max() / reach.min()))
        equalize(net, forward, batches(1)[0])
    assert spread[1] < 0.5 * spread[0]


@pytest.mark.parametrize("between", [nn.GELU(), nn.ReLU6(), nn.Hardswish(), nn.Sigmoid()])
def test_only_what_lets_factors_through_makes_a_pair(between: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), between, nn.Conv2d(8, 4, 3)).eval()
    assert pairs(net, forward, batches(1)[0]) == []
    net[1] = nn.LeakyReLU()
    assert pairs(net, forward, batches(1)[0]) == [Pair("0", None, "2")]


def test_recalibrated_statistics_are_those_of_the_data(net: nn.Module) -> None:
    data = batches(1, 32)
    assert recalibrate(net, forward, data) == 4
    seen = net.blocks[0].conv1(torch.relu(net.stem(data[0]["x"])))
    norm = net.blocks[0].bn1
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in net.modules())
    assert norm.momentum == 0.1


def test_edges_are_the_first_and_the_last_layer_called(net: nn.Module) -> None:
    assert edge_layers(net, forward, batches(1)[0], most=1.0) == ["stem", "head"]
    assert edge_layers(net, forward, batches(1)[0], most=0.01) == []


def test_a_pair_whose_own_factors_change_the_output_is_left_alone(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    clipped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        clipped[2].weight.mul_(torch.logspace(-1, 1, 8).reshape(1, -1, 1, 1))
    before = {k: v.clone() for k, v in clipped.state_dict().items()}
    monkeypatch.setattr("compresskit.ops.quantize.equalize.pairs", lambda *_: [Pair("0", None, "2")])
    data = {"x": batches(1)[0]["x"] * 5}
    assert equalize(clipped, forward, data) == []
    assert all(torch.equal(v, before[k]) for k, v in clipped.state_dict().items())


def test_a_normalization_that_no_batch_reaches_keeps_its_statistics(net: nn.Module) -> None:
    net.unused = nn.BatchNorm2d(4).eval()
    net.unused.running_mean.fill_(3.0)
    net.unused.running_var.fill_(7.0)
    assert recalibrate(net, forward, batches(1, 32)) == 4
    assert (net.unused.running_mean == 3).all() and (net.unused.running_var == 7).all()


class Cut(nn.Module):
    """Two outputs: whole numbers, and one that no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.layer(x)
        return out.argmax(1), out.detach()


def test_what_cannot_be_learnt_stays_as_it_was_rounded() -> None:
    torch.manual_seed(0)
    module = Cut().eval()
    found: list[bool] = []

    def learn(segment: Any, start: Any) -> Any:
        learnt = reconstruct(segment, start, Effort(3), silent)
        found.append(all(torch.equal(dequantize(learnt[n]), dequantize(start[n])) for n in start))
        return learnt

    data = [{"x": torch.randn(4, 8)}]
    quantize_calibrated(module, Selection(8, 0), Method(quantize_gptq, learn=learn), data, forward, silent)
    assert found == [True]


def test_a_layer_with_two_names_is_faked_once() -> None:
    layer = nn.Linear(8, 4)
    weight = layer.weight
    fake = FakeWeight(quantize_rtn(weight, Grid(4, 0, True)))
    with faked({"a": layer, "b": layer}, {"a": fake, "b": fake}):
        assert len(layer.parametrizations["weight"]) == 1
    assert layer.weight is weight
