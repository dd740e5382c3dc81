"""One traced pass: order, producers, consumers, shared inputs and the chain of blocks."""

from __future__ import annotations

import pytest
import torch
from calibration_models import Blocks, batches, forward
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from compresskit.ops.calibration.trace import OUTPUT, Trace, chain, trace


@torch.no_grad()
def traced(module: nn.Module, *args: torch.Tensor) -> Trace:
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


def test_what_no_layer_needs_any_more_is_let_go() -> None:
    """Sixteen rows of a large language model would be several times its memory otherwise."""
    seen: list[StorageWeakRef] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            assert all(ref.expired() for ref in seen[:-1])  # the last is this layer's own input
            seen.append(StorageWeakRef(out.untyped_storage()))
            return out

    module = nn.Sequential(*(Watched(4, 4) for _ in range(4))).eval()
    found = traced(module, torch.randn(2, 4))
    assert len(seen) == 4 and chain(module, found) == ["0", "1", "2", "3"]


def test_a_write_is_found_after_the_view_that_a_layer_was_given_is_gone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Linear(2, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1
            y = self.early(x[:, :2])
            x += 1
            return self.late(x) + y

    assert traced(Net().eval(), torch.randn(2, 4)).inputs_overwritten() == {"early"}
