"""Convolutions as depthwise ones and a 1×1."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_substitute import data_of, pictures, quiet
from torch import nn

from compresskit.errors import InputError
from compresskit.facts.substitute import DepthwiseFacts
from compresskit.ops.calibration.trace import trace
from compresskit.ops.substitute.depthwise import Depthwise, replay, why_not
from compresskit.ops.substitute.separate import made, separate


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
    facts = separate(module, ["1.0.conv1", "1.1.conv1", "2.1.conv1"], 1, found, data, quiet)
    assert facts["kept"] == "fitted" and facts["after"] < 0.6 * facts["before"]
    again = pictures()
    replay(again, dict.fromkeys(["1.0.conv1", "1.1.conv1", "2.1.conv1"], DepthwiseFacts(multiplier=1)))
    again.load_state_dict(module.state_dict())


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
