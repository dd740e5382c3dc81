"""Parts of a model left out for a while: the same function as the model cut down, with gradients for the whole one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from prune_nets import NETS, Depthwise, Plain, Residual, made
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.facts import read_facts, to_json
from compresskit.facts.supernet import ElasticFacts
from compresskit.ops.prune.elastic import Elastic, ElasticSettings, Subnet, again, elastic, take
from compresskit.ops.prune.rewrite import rewrite_shortcuts
from compresskit.ops.shrinking import CalibrationData

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


class Block(nn.Module):
    """A residual block, as of a ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.short = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(out + self.short(x))


def resnet() -> nn.Module:
    stages = [nn.Sequential(Block(16, 16), Block(16, 16)), nn.Sequential(Block(16, 32, 2), Block(32, 32))]
    return nn.Sequential(nn.Conv2d(3, 16, 3), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


def quiet(*_: object) -> None:
    return None


def forward(module: nn.Module, batch: dict[str, Tensor]) -> Any:
    return module(*batch.values())


def images() -> CalibrationData:
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return CalibrationData({"x": x[:4]}, [{"x": x}], forward)


def found_of(module: nn.Module, **settings: Any) -> Elastic:
    return elastic(module, images(), ElasticSettings(**settings), quiet)


@pytest.mark.parametrize("kind", [*NETS, resnet])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_subnet_is_the_model_cut_out_of_it(kind: Callable[[], nn.Module], mode: bool) -> None:
    net, x = made(kind), images().example["x"]
    rewrite_shortcuts(net, images().run)
    found = found_of(net, keep_blocks=None if kind is not resnet else 1)
    for subnet in (Subnet(), Subnet(0.5), Subnet(0.3, len(found.blocks)), Subnet(1, len(found.blocks))):
        smaller = copy.deepcopy(net)
        take(smaller, found, subnet, images())
        state = copy.deepcopy(net.state_dict())
        with found.only(net.train(mode), subnet):
            lent = net(x)
        torch.testing.assert_close(smaller.train(mode)(x), lent, **CLOSE)
        assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
        assert list(net.state_dict()) == list(state)
        torch.testing.assert_close(net.eval()(x), copy.deepcopy(net)(x), **CLOSE)
        if subnet.width < 1:
            assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in net.parameters())


def test_the_whole_models_parameters_get_the_gradients() -> None:
    net, x = made(resnet), images().example["x"]
    found = found_of(net, keep_blocks=1)
    with found.only(net, Subnet(0.5, 1)):
        net(x).square().sum().backward()
    dropped = found.gone(1)[0]
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith(f"{dropped}."), name
        assert isinstance(parameter, nn.Parameter)
    kept = found.kept(0.5)["0"]
    lines = net.get_submodule("0").weight.grad.flatten(1).norm(dim=1)
    assert sorted(lines.nonzero().flatten().tolist()) == kept and len(kept) == 8


def test_wider_subnets_hold_narrower_ones() -> None:
    found = found_of(made(resnet), multiple=4, keep_blocks=1)
    for wide, narrow in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.1)):
        more, fewer = found.kept(wide), found.kept(narrow)
        assert all(set(fewer[name]) < set(more[name]) and len(fewer[name]) % 4 == 0 for name in more)
    assert found.gone(1) == found.gone(2)[:1]
    assert {len(units) for units in found.kept(0.01).values()} == {4}


def test_the_channel_and_the_block_that_nothing_misses_go_first() -> None:
    net = made(resnet)
    with torch.no_grad():
        net.get_submodule("0").weight[3] = 0
        net.get_submodule("0").bias[3] = 0
        for name in ("1.0", "1.1", "2.0"):
            block = net.get_submodule(name)
            block.conv1.weight[:, 3] = 0
        net.get_submodule("2.1").norm2.weight.zero_()
        net.get_submodule("2.1").norm2.bias.zero_()
    found = found_of(net, multiple=1, keep_blocks=1)
    assert found.gone(1) == ["2.1"]


@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise, resnet])
def test_facts_name_the_same_parts_again(kind: Callable[[], nn.Module]) -> None:
    net = made(kind)
    rewrite_shortcuts(net, images().run)
    found = found_of(net)
    facts = read_facts(ElasticFacts, to_json(found.facts(0.5)))
    same = again(net, images(), facts, ElasticSettings())
    assert same.kept(0.4) == found.kept(0.4)
    assert same.gone(9) == found.gone(9) == facts.blocks


def test_facts_of_another_model_are_refused() -> None:
    facts = found_of(made(Plain)).facts(0.5)
    with pytest.raises(InputError, match=r"the supernet's card lists other channels or blocks .*conv1"):
        again(made(resnet), images(), facts, ElasticSettings())


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"order": {"conv": [0, 0]}}, "order"),
        ({"order": {"conv": [0, 2]}}, "order"),
        ({"blocks": ["a", "a"]}, "twice"),
        ({"least": 0.0}, "least"),
        ({"multiple": 0}, "multiple"),
    ],
)
def test_facts_that_were_changed_are_refused(change: dict[str, Any], where: str) -> None:
    facts = {"order": {"conv": [1, 0]}, "blocks": ["a", "b"], "least": 0.5, "multiple": 8}
    read_facts(ElasticFacts, facts)
    with pytest.raises(InputError, match=where):
        read_facts(ElasticFacts, facts | change)


def test_what_has_no_parts_is_refused() -> None:
    with pytest.raises(InputError, match="neither channels nor blocks"):
        found_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval())
    with pytest.raises(UsageError, match="`min_depth` 9: the model has 3 blocks"):
        found_of(made(resnet), keep_blocks=9)
