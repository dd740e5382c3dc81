"""One traced pass: order, producers, consumers, shared inputs and the chain of blocks."""

from __future__ import annotations

import pytest
import torch
from calibration_models import Blocks, batches, forward
from torch import nn

from compresskit.ops.calibration.trace import OUTPUT, chain, trace


@torch.no_grad()
def traced(module: nn.Module, *args: torch.Tensor) -> object:
    return trace(module, lambda: module(*args))


def test_who_feeds_whom() -> None:
    module = Blocks()
    with torch.no_grad():
        found = trace(module, lambda: forward(module, batches(1)[0]))
    assert found.producer("layers.0.q") == "layers.0.norm1"
    assert found.consumers("layers.0.norm1") == {"layers.0.q", "layers.0.k"}
    assert found.producer("layers.0.out") is None  # made by the block's own code
    assert found.consumers("embed") == {"layers.0", "layers.0.norm1"}
    assert found.consumers("head") == {OUTPUT}
    assert found.groups(["layers.0.k", "head", "layers.0.q", "unused"]) == [["layers.0.q", "layers.0.k"], ["head"]]
    assert chain(module, found) == ["layers.0", "layers.1"]


def test_a_layer_called_twice_has_no_single_producer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(self.norm(x)))

    found = trace(module := Twice().eval(), lambda: module(torch.randn(2, 4)))
    assert found.producer("layer") is None and found.consumers("layer") == set()
    assert len(found.called("layer")) == 2 and "layer" not in found.once()
    assert chain(module, found) == []


@pytest.mark.parametrize("nested", [False, True])
def test_a_sequential_is_a_chain(nested: bool) -> None:
    inner = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*inner)) if nested else nn.Sequential(*inner)
    found = trace(module, lambda: module(torch.randn(2, 4)))
    assert chain(module, found) == (["0", "1.0", "1.1", "1.2"] if nested else ["0", "1", "2"])


def test_a_layer_that_hands_on_its_input_does_not_break_the_chain() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    with torch.no_grad():
        found = trace(module.eval(), lambda: module(torch.randn(2, 4)))
    assert chain(module, found) == ["0", "1", "2", "3", "4"]
