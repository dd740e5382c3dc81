"""``x += f(x)`` and ``x = x + f(x)`` are the same mathematics: what looks at a model sees the same of both."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compresskit.data.source import Batch
from compresskit.model import InputSpec
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import trace
from compresskit.ops.prune.depth import blocks_of, influences
from compresskit.ops.prune.least_squares import refit
from compresskit.ops.quantize.calibrated import Method, quantize_calibrated
from compresskit.ops.quantize.gptq import quantize_gptq
from compresskit.ops.quantize.reconstruct import Effort, reconstruct
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.sensitivity import distances
from compresskit.ops.shrinking import CalibrationData
from compresskit.runtimes.torch import TorchSession
from compresskit.stages.batches import batches_of, forward_of

WIDTH = 32


class Block(nn.Module):
    """Two residual branches, which read the stream itself, or its normalized copies."""

    def __init__(self, inplace: bool, normed: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH) if normed else nn.Identity()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            y = torch.tanh(layer(self.norm(x)))
            if self.inplace:
                x += y
            else:
                x = x + y
        return x


class Residual(nn.Module):
    """Writes into its input, into the stream of its blocks, and into what the last one gives; or never."""

    def __init__(self, inplace: bool, normed: bool = False, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inplace = inplace
        self.stem, self.head = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 10)
        self.blocks = nn.ModuleList(Block(inplace, normed) for _ in range(depth))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5) if self.inplace else x - 0.5
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = x.mul_(0.5) if self.inplace else x * 0.5
        return self.head(x)


class Normed(Residual):
    """As much as gradients can follow: what a layer's weight was multiplied by is never written over."""

    def __init__(self, inplace: bool) -> None:
        super().__init__(inplace, normed=True)


class Whole(nn.Module):
    """No chain of blocks, and a layer that is called twice on a stream that is written into between."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.inplace = nn.Linear(16, 16), nn.Linear(16, 16), inplace
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        for _ in range(2):
            if self.inplace:
                x += self.a(x)
            else:
                x = x + self.a(x)
        return self.b(x)


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(48, 16, generator=generator)} for _ in range(count)]


def forward(module: nn.Module) -> Any:
    return forward_of(module, (InputSpec("x", "float32", ("batch", 16)),))


def learn(segment: Segment, start: Any, *terms: Any) -> Any:
    return reconstruct(segment, start, Effort(steps=12), lambda _done, _all: None, *terms)


PLAIN = {
    "gptq": Method(quantize_gptq),
    "drift": Method(quantize_gptq, drift=1.0),
    "scale": Method(quantize_gptq, scale=True),
}
LEARNT = {"learn": Method(quantize_gptq, learn=learn), "tune": Method(quantize_gptq, tune=learn)}
CASES = [(kind, name) for kind in (Residual, Normed, Whole) for name in PLAIN] + [(Normed, name) for name in LEARNT]


def quantized(module: nn.Module, method: Method) -> tuple[nn.Module, dict[str, Any]]:
    done = quantize_calibrated(module, Selection(4, 16), method, batches(), forward(module), lambda *_: None)
    return module, done[0]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_calibration_gives_the_same_codes(kind: Any, name: str) -> None:
    method = (PLAIN | LEARNT)[name]
    (first, facts), (second, same) = (quantized(kind(inplace), method) for inplace in (False, True))
    assert facts == same
    state = second.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_segment_can_be_replayed_and_ends_in_the_models_output(inplace: bool) -> None:
    module = Residual(inplace)
    known = forward(module)(module, batches()[1])
    names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]

    def step(segment: Segment) -> None:
        first, again = segment.replay(1), segment.replay(1)
        assert torch.equal(first, again)
        if segment.name == "" and segment.groups == [["head"]]:
            assert torch.equal(again, known)

    run_sequentially(module, batches(), forward(module), names, step)


def test_only_what_is_overwritten_is_copied() -> None:
    for inplace in (False, True):
        module = Residual(inplace)
        with torch.no_grad():
            found = trace(module, lambda module=module: module(torch.randn(4, 16)))
        blocks = {f"blocks.{i}" for i in range(3)}
        inside = {f"{block}.{name}" for block in blocks for name in ("a", "b", "norm")}
        assert found.inputs_overwritten() == (blocks | inside if inplace else set())
        assert found.outputs_overwritten() == ({"stem", *blocks, *(f"{b}.norm" for b in blocks)} if inplace else set())


def test_layers_that_read_the_stream_before_and_after_a_write_share_no_input() -> None:
    module = Residual(True)
    with torch.no_grad():
        found = trace(module, lambda: module(torch.randn(4, 16)))
    assert found.groups(["blocks.0.a", "blocks.0.b"]) == [["blocks.0.a"], ["blocks.0.b"]]


def test_sensitivity_is_the_same() -> None:
    found = []
    for module in map(Residual, (False, True)):
        weights = {n: lambda w: w * 0.9 for n, m in module.named_modules() if isinstance(m, nn.Linear)}
        found.append(distances(module, weights, batches(), forward(module), lambda *_: None))
    assert found[0] == found[1]
    assert min(found[0].values()) > 0


def test_the_influence_of_blocks_is_the_same() -> None:
    found = []
    for module in map(Residual, (False, True)):
        blocks = blocks_of(module, batches()[0], forward(module))
        found.append(influences(module, blocks, batches(), forward(module), lambda *_: None))
    assert found[0] == found[1]
    assert min(found[0].values()) > 0


def test_a_least_squares_refit_is_the_same() -> None:
    found = []
    for module in map(Whole, (False, True)):
        cut = copy.deepcopy(module)
        with torch.no_grad():
            cut.a.weight.mul_(0.9)
        data = CalibrationData(batches()[0], batches(), forward(module))
        found.append(refit(cut, module, {}, {"a": 2, "b": 1}, data, lambda *_: None))
    assert found[0] == found[1]


def test_batches_stay_as_they_are() -> None:
    module, kept = Residual(True), batches()
    run = forward(module)
    first = [run(module, batch) for batch in kept]
    assert all(torch.equal(run(module, batch), out) for batch, out in zip(kept, first, strict=True))
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(kept, batches(), strict=True))


def test_the_torch_runtime_leaves_the_callers_arrays_alone() -> None:
    array = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    before, session = array.copy(), TorchSession(Residual(True), "the model", ())
    found = [session.run({"x": array})["output"] for _ in range(3)]
    assert np.array_equal(array, before)
    assert all(np.array_equal(out, found[0]) for out in found)


class Data(nn.Module):
    """Writes past torch's counter of writes."""

    def forward(self, x: Tensor) -> Tensor:
        x.data.mul_(2)
        return x.sum(1)


def test_a_write_that_torch_does_not_count_is_found() -> None:
    array = np.full((2, 3), np.nan, np.float32)
    array[0] = 1
    session = TorchSession(Data(), "the model", ())
    for _ in range(3):
        assert session.run({"x": array})["output"][0] == 6
    assert array[0].tolist() == [1, 1, 1]


def test_an_ordinary_module_gets_the_tensors_themselves() -> None:
    seen: list[int] = []

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.data_ptr())
            return x + 1

    module, batch = Plain(), batches(1)[0]
    run = forward(module)
    for _ in range(3):
        run(module, batch)
    assert seen[0] != batch["x"].data_ptr()
    assert seen[1:] == [batch["x"].data_ptr()] * 2


class Fickle(nn.Module):
    """Writes into pictures of bytes only, and gives back what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 1:
            x.div_(255)
        return x


@pytest.mark.parametrize("kind", [Data, Fickle])
def test_what_is_written_for_some_values_only_stays_too(kind: type[nn.Module]) -> None:
    module, run = kind(), forward(kind())
    session = TorchSession(module, "the model", ())
    kept = [torch.zeros(2, 3), torch.full((2, 3), 255.0)]
    arrays = [tensor.clone().numpy() for tensor in kept]
    first = [run(module, {"x": tensor}).clone() for tensor in kept]
    for _ in range(2):
        for tensor, array, known in zip(kept, arrays, first, strict=True):
            assert torch.equal(run(module, {"x": tensor}), known)
            assert np.array_equal(session.run({"x": array})["output"], known)
    assert [float(tensor.max()) for tensor in kept] == [0, 255] == [float(array.max()) for array in arrays]


def test_batches_share_no_memory_with_their_source() -> None:
    class Arrays:
        name, kind, labelled = "arrays", "arrays", False

        def __init__(self) -> None:
            self.array = np.ones((4, 16), np.float32)

        def __len__(self) -> int:
            return 4

        def batches(self, size: int, limit: int | None = None) -> Any:
            yield Batch({"x": self.array})

        def fingerprint(self) -> str:
            return ""

    source = Arrays()
    for batch in batches_of(source, (InputSpec("x", "float32", ("batch", 16)),), 4, 4):
        batch["x"].zero_()
    assert source.array.min() == 1
