"""The walk: each segment sees what the changed model before it gives, and its moments are those of a whole pass."""

from __future__ import annotations

import copy

import pytest
import torch
from calibration_models import Blocks, batches, forward
from torch import Tensor, nn

from compresskit.ops.quantize.moments import Collector
from compresskit.ops.quantize.walk import Segment, walk


def linear(module: nn.Module) -> list[str]:
    return [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n != "unused"]


def inputs(module: nn.Module, name: str, masked: bool) -> Collector:
    """What a layer gets, from whole passes of the model."""
    collector = Collector(module.get_submodule(name))
    for batch in batches(masked=masked):
        keep = batch["attention_mask"].bool() if masked else None

        def hook(_layer: nn.Module, args: tuple[Tensor, ...], keep: Tensor | None = keep) -> None:
            collector.add(args[0], keep)

        handle = module.get_submodule(name).register_forward_pre_hook(hook)
        with torch.no_grad():
            forward(module, batch)
        handle.remove()
    return collector


@pytest.mark.parametrize("masked", [False, True])
def test_moments_are_those_of_the_changed_model(masked: bool) -> None:
    module = Blocks()
    seen: list[str] = []

    def step(segment: Segment) -> None:
        for group in segment.groups:
            found = segment.moments(group)
            for name in group:
                whole = inputs(module, name, masked).moments()
                assert whole is not None and whole.count == found[name].count
                assert torch.allclose(whole.gram, found[name].gram, atol=1e-4)
            for name in group:
                with torch.no_grad():
                    segment.layer(name).get_parameter("weight").mul_(1.1)
                seen.append(name)

    walk(module, batches(masked=masked), forward, linear(module), step)
    assert seen == [
        f"layers.{i}.{n}" for i in range(2) for n in ("q", "k", "out", "up", "down")
    ] + ["head"]  # fmt: skip


def test_the_original_stream_stays_the_original() -> None:
    module = Blocks()
    before = copy.deepcopy(module)

    def step(segment: Segment) -> None:
        assert segment.is_block == segment.name.startswith("layers.")
        if not segment.is_block:
            return
        index = int(segment.name[-1])
        with torch.no_grad():
            x = before.embed(batches()[1]["ids"])
            for layer in before.layers[: index + 1]:
                x = layer(x)[0]
        assert torch.allclose(segment.replay_original(1)[0], x, atol=1e-5)
        found = segment.moments([n for g in segment.groups for n in g], cross=True)
        drift = found[f"{segment.name}.q"].cross
        assert drift is not None and (drift.abs().max() < 1e-5) == (index == 0)
        with torch.no_grad():
            segment.module.get_submodule("down").get_parameter("weight").mul_(1.2)

    walk(module, batches(), forward, linear(module), step, original=True)


def test_a_model_without_blocks_is_one_segment() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) + self.a(x)

    module = Flat().eval()
    names: list[list[list[str]]] = []

    def step(segment: Segment) -> None:
        names.append(segment.groups)
        found = segment.moments(["a", "b"], cross=True)
        assert found["a"].count == 2 * found["b"].count == 12  # one is called twice

    walk(module, [{"x": torch.randn(6, 4)}], lambda m, b: m(b["x"]), ["a", "b"], step, original=True)
    assert names == [[["a"], ["b"]]]


def test_an_error_in_the_model_comes_out_and_leaves_it_as_it_was() -> None:
    module = Blocks()

    def step(segment: Segment) -> None:
        raise KeyError(segment.name)

    with pytest.raises(KeyError, match=r"layers\.0"):
        walk(module, batches(), forward, linear(module), step)
    assert all("forward" not in layer.__dict__ and not layer._forward_pre_hooks for layer in module.modules())
