"""Convolutions as depthwise ones and a 1×1."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from test_substitute import data_of, pictures, quiet
from torch import nn

from compresskit.errors import InputError
from compresskit.facts.substitute import DepthwiseFacts
from compresskit.ops.calibration.trace import trace
from compresskit.ops.output_distance import OutputDistance, split
from compresskit.ops.packed.modules import set_module
from compresskit.ops.substitute.candidates import few_of
from compresskit.ops.substitute.depthwise import Depthwise, replay, why_not
from compresskit.ops.substitute.separate import replacements, separate


def made(model: nn.Module, name: str, multiplier: int) -> Depthwise:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return Depthwise(layer, multiplier).fill(layer)


@torch.no_grad()
def test_as_many_windows_as_places_compute_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(5, 12, 3, stride=2, padding=1))
    x = torch.randn(2, 5, 9, 9)
    whole = made(model, "0", 9)
    assert float((whole(x) - model(x)).norm() / model(x).norm()) <= 1e-6
    away = [float((made(model, "0", m)(x) - model(x)).norm()) for m in (1, 2, 4, 9)]
    assert away == sorted(away, reverse=True)
    assert all(layer.groups == layer.out_channels == 5 for layer in whole.depth if isinstance(layer, nn.Conv2d))


def test_a_convolution_of_one_window_a_channel_is_found_exactly() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(8, 6, 1, 1) * torch.randn(1, 6, 3, 3))
    x = torch.randn(1, 6, 7, 7)
    assert torch.allclose(Depthwise(conv, 1).fill(conv)(x), conv(x), atol=1e-5)


@torch.no_grad()
def test_the_fit_along_the_model_wins_most_of_it_back() -> None:
    module, data = pictures(bent=(True,) * 4), data_of(17)
    found = trace(module, partial(data.run, module))
    parts = {name: made(module, name, 1) for name in ("1.0.conv1", "1.1.conv1", "2.1.conv1")}
    facts = separate(module, parts, found, data, quiet)
    assert facts["kept"] == "fitted" and facts["after"] < 0.6 * facts["before"]
    again = pictures()
    replay(again, dict.fromkeys(["1.0.conv1", "1.1.conv1", "2.1.conv1"], DepthwiseFacts(multiplier=1)))
    again.load_state_dict(module.state_dict())


@torch.no_grad()
def test_what_each_replacement_loses_and_saves_alone() -> None:
    module, data = pictures(bent=(True,) * 4), data_of(17)
    names = ("1.0.conv1", "1.1.conv1", "2.1.conv1")
    parts = {name: made(module, name, 1) for name in names}
    before = {key: value.clone() for key, value in module.state_dict().items()}
    unfitted = OutputDistance(module, few_of(split(data.batches)[1]), data.forward, scores=data.scores)
    loose = {}
    for name in names:
        layer = module.get_submodule(name)
        set_module(module, name, copy.deepcopy(parts[name]))
        loose[name] = unfitted(module)
        set_module(module, name, layer)
    found = replacements(module, parts, {names[0]: 0.5}, data, quiet)
    assert [one.name for one in found] == list(names) and [one.time for one in found] == [0.5, None, None]
    assert all(one.loss < loose[one.name] for one in found), "the 1×1 is fitted"
    first = module.get_submodule(names[0])
    assert isinstance(first, nn.Conv2d)
    products = first.weight.numel() - sum(p.numel() for p in parts[names[0]].parameters())
    assert found[0].saved / found[0].whole == pytest.approx(products / first.weight.numel())
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("layer", "multiplier", "why"),
    [
        (nn.Conv2d(8, 8, 3), 1, ""),
        (nn.Conv2d(8, 8, 3), 5, "as many products"),
        (nn.Conv2d(8, 64, 3), 10, "its windows have 9 places"),
        (nn.Conv2d(8, 8, 3, groups=8), 1, "not a convolution of all channels"),
        (nn.Conv2d(8, 8, 1), 1, "as many products"),
        (nn.Linear(8, 8), 1, "not a convolution"),
    ],
)
def test_what_cannot_be_depthwise(layer: nn.Module, multiplier: int, why: str) -> None:
    assert why in why_not(layer, multiplier) if why else not why_not(layer, multiplier)
    if why:
        with pytest.raises(InputError, match="can't have been made depthwise"):
            replay(nn.Sequential(layer), {"0": DepthwiseFacts(multiplier=multiplier)})
