"""The walk: each segment sees what the changed model before it gives, and its moments are those of a whole pass."""

from __future__ import annotations

import copy

import pytest
import torch
from calibration_models import Blocks, batches, forward
from torch import Tensor, nn

from compresskit.ops.calibration.moments import Collector
from compresskit.ops.calibration.sequential import Segment, run_sequentially


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

    run_sequentially(module, batches(masked=masked), forward, linear(module), step)
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

    run_sequentially(module, batches(), forward, linear(module), step, original=True)


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

    run_sequentially(module, [{"x": torch.randn(6, 4)}], lambda m, b: m(b["x"]), ["a", "b"], step, original=True)
    assert names == [[["a"], ["b"]]]


def test_an_error_in_the_model_comes_out_and_leaves_it_as_it_was() -> None:
    module = Blocks()

    def step(segment: Segment) -> None:
        raise KeyError(segment.name)

    with pytest.raises(KeyError, match=r"layers\.0"):
        run_sequentially(module, batches(), forward, linear(module), step)
    assert all("forward" not in layer.__dict__ and not layer._forward_pre_hooks for layer in module.modules())


class Stages(nn.Module):
    """Blocks whose outputs go elsewhere too: to a pyramid, to a concatenation, or beside a residual."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.stages = nn.ModuleList(Residual() if kind == "residual" else nn.Linear(4, 4) for _ in range(4))
        self.sides = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.head = nn.Linear(16 if kind == "concatenation" else 4, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        beside, found = torch.zeros_like(x), []
        for stage in self.stages:
            if self.kind == "residual":
                x, beside = stage(x, beside)
            else:
                x = stage(x)
            found.append(x)
        if self.kind == "pyramid":
            x = sum(side(part) for side, part in zip(self.sides, found, strict=True))
        return self.head(torch.cat(found, 1) if self.kind == "concatenation" else x + beside)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x + beside), x + 2 * beside


@pytest.mark.parametrize("kind", ["pyramid", "concatenation", "residual"])
def test_outputs_that_go_elsewhere_too_give_the_moments_of_a_whole_pass(kind: str) -> None:
    module, data = Stages(kind), [{"x": torch.randn(6, 4)} for _ in range(3)]
    seen: list[str] = []

    def call(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
        return m(b["x"])

    def step(segment: Segment) -> None:
        for name in (n for group in segment.groups for n in group):
            whole = Collector(segment.layer(name))
            handle = segment.layer(name).register_forward_pre_hook(lambda _m, args, to=whole: to.add(args[0]))
            for batch in data:
                call(module, batch)
            handle.remove()
            expected, found = whole.moments(), segment.moments([name])[name]
            assert expected is not None and torch.allclose(expected.gram, found.gram, rtol=1e-4, atol=1e-5)
            segment.layer(name).get_parameter("weight").mul_(1.5)
            seen.append(name)

    run_sequentially(module, data, call, linear(module), step)
    assert len(seen) == (9 if kind == "pyramid" else 5)


class Routed(nn.Module):
    """Samples go to one of three experts by their first two values; one that gets none isn't called."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        chosen = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            if (chosen == index).any():
                out[chosen == index] = expert(x[chosen == index])
        return x + out


def test_routing_that_depends_on_the_data_drops_the_cross_moments_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Routed(), Routed()).eval()
    data = [{"x": torch.randn(count, 4)} for count in (1, 64, 64)]
    counts: dict[str, int] = {}

    def step(segment: Segment) -> None:
        for group in segment.groups:
            for name, found in segment.moments(group, cross=True).items():
                counts[name] = found.count
                assert (found.cross is None) == (found.drift is None) == ("experts" in name)
            for name in group:
                segment.layer(name).get_parameter("weight").neg_()

    run_sequentially(module, data, lambda m, b: m(b["x"]), linear(module), step, original=True)
    # The first batch reaches one expert of three: the others are found all the same.
    for block in range(2):
        assert counts[f"{block}.mix"] == sum(counts[f"{block}.experts.{i}"] for i in range(3)) == 129
