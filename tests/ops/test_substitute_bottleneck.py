"""Layers through fewer channels."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from test_substitute import data_of, pictures, quiet
from torch import nn

from compresskit.errors import InputError
from compresskit.facts.substitute import BottleneckFacts
from compresskit.ops.calibration.trace import trace
from compresskit.ops.substitute.bottleneck import Bottleneck, replay, why_not, width_of
from compresskit.ops.substitute.separate import separate

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "3x3": (partial(nn.Conv2d, 8, 8, 3, stride=2, padding=1), (8, 9, 9)),
    "1x1": (partial(nn.Conv2d, 8, 8, 1, stride=2), (8, 9, 9)),
    "5x5 without bias": (partial(nn.Conv2d, 8, 8, 5, dilation=2, padding=3, bias=False), (8, 9, 9)),
    "linear": (partial(nn.Linear, 8, 8), (3, 8)),
}


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_a_layer_of_few_channels_is_found_exactly_and_less_is_further_away(case: str) -> None:
    make, shape = LAYERS[case]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(2, *shape)
    narrow = Bottleneck(layer, 4)
    weights = [part.get_parameter("weight") for part in (narrow.reduce, narrow.core, narrow.point) if
               "weight" in part._parameters]  # fmt: skip
    into, out = weights[0].reshape(4, 8), weights[-1].reshape(8, 4)
    core = weights[1].reshape(4, 4, -1) if len(weights) > 2 else torch.eye(4)[..., None]
    layer.weight.copy_(torch.einsum("om,mnk,ni->oik", out, core, into).reshape(layer.weight.shape))
    wanted = layer(x)
    away = [float((Bottleneck(layer, w).fill(layer)(x) - wanted).norm() / wanted.norm()) for w in (2, 3, 4)]
    assert away == sorted(away, reverse=True) and away[-1] <= 1e-6 < 1e-3 < away[-2]


@torch.no_grad()
def test_a_layer_of_few_directions_is_found_exactly_and_inputs_count_as_they_are_used() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    x = torch.randn(400, 2) @ torch.randn(2, 8)  # only two directions are ever seen
    near, far = Bottleneck(layer, 2).fill(layer, (x.T @ x).double() / len(x)), Bottleneck(layer, 2).fill(layer)
    error = [float((parts(x) - layer(x)).norm() / layer(x).norm()) for parts in (near, far)]
    assert error[0] <= 1e-3 < 0.1 < error[1]


@torch.no_grad()
def test_the_fit_along_the_model_wins_some_of_it_back() -> None:
    module, data = pictures(bent=(True,) * 4), data_of(17)
    names, found = ["1.0.conv1", "1.1.conv1", "2.1.conv1"], trace(module, partial(data.run, module))
    made = {}
    for name in names:
        layer: Any = module.get_submodule(name)
        made[name] = Bottleneck(layer, 4).fill(layer)
    facts = separate(module, made, found, data, quiet)
    assert facts["kept"] == "fitted" and facts["after"] < 0.9 * facts["before"]
    again = pictures()
    replay(again, dict.fromkeys(names, BottleneckFacts(width=4)))
    again.load_state_dict(module.state_dict())


@pytest.mark.parametrize(
    ("layer", "width", "why"),
    [
        (nn.Conv2d(16, 16, 3), 8, ""),
        (nn.Linear(64, 64), 16, ""),
        (nn.Linear(64, 64), 32, "as many products"),
        (nn.Conv2d(16, 16, 3, stride=3), 8, ""),
        (nn.Conv2d(16, 16, 3, stride=4), 8, "as many products"),
        (nn.Conv2d(16, 8, 3), 8, "it has 8 channels, too few for a bottleneck of 8"),
        (nn.Conv2d(16, 16, 3, groups=2), 8, "no convolution of all channels"),
        (nn.BatchNorm2d(16), 8, "no Linear layer"),
    ],
)
def test_what_cannot_be_a_bottleneck(layer: nn.Module, width: int, why: str) -> None:
    assert why in why_not(layer, width) if why else not why_not(layer, width)
    if why:
        with pytest.raises(InputError, match="can't have become a bottleneck"):
            replay(nn.Sequential(layer), {"0": BottleneckFacts(width=width)})


def test_widths_are_multiples_of_eight() -> None:
    assert [width_of(nn.Conv2d(64, 48, 3), share) for share in (0.1, 0.25, 0.5)] == [8, 16, 24]
