"""The training loop and quantization-aware training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from compresskit.errors import InputError
from compresskit.ops.quantize.fake_int8 import Int8Input
from compresskit.ops.quantize.grid import dequantize
from compresskit.ops.quantize.modules import PackedLinear
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.train.distill import soft_cross_entropy
from compresskit.train.loop import Optimizing, crop_and_flip, fit
from compresskit.train.qat import Task, Training, quantize_trained, train_int8


def data(count: int = 256) -> list[Tensor]:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    return [x, (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2, bias=False))


def loss(module: nn.Module, part: list[Tensor]) -> Tensor:
    return cross_entropy(module(part[0]), part[1])


def accuracy(module: nn.Module) -> float:
    x, y = data()
    return float((module(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize(
    "how",
    [
        Optimizing(),
        Optimizing(0.1, "sgd", "cosine"),
        Optimizing(1e-2, "adamw", "cosine", warmup=0.1),
        Optimizing(1e-2, "adamw", "cosine", ema=0.9),
    ],
)
def test_every_way_of_optimizing_learns(how: Optimizing) -> None:
    module = net()
    last = fit(module, data(), loss, epochs=12, batch=16, optimizing=how)
    assert accuracy(module) > 0.95
    assert last < 0.2
    assert not module.training and all(p.grad is None for p in module.parameters())


def test_the_seed_decides_and_so_do_the_frozen() -> None:
    first, second, third = net(), net(), net()
    third[0].requires_grad_(False)
    before = third[0].weight.detach().clone()
    for module, seed in ((first, 1), (second, 1), (third, 2)):
        fit(module, data(), loss, epochs=2, batch=16, seed=seed)
    assert torch.equal(first[2].weight, second[2].weight)
    assert not torch.equal(first[2].weight, third[2].weight)
    assert torch.equal(third[0].weight, before)


def test_progress_counts_the_steps() -> None:
    seen: list[tuple[str, int, int]] = []
    fit(net(), data(64), loss, epochs=2, batch=16, progress=lambda *step: seen.append(step))
    assert seen == [("training", step, 8) for step in range(1, 9)]


def test_divergence_is_an_error() -> None:
    with pytest.raises(InputError, match="diverged at step"):
        fit(net(), data(), lambda m, p: loss(m, p) * float("nan"), epochs=1)


def test_crops_and_mirrors_hold_the_images_pixels() -> None:
    images = torch.arange(1.0, 2 * 3 * 5 * 5 + 1).reshape(2, 3, 5, 5).repeat(20, 1, 1, 1)
    found = crop_and_flip(images, torch.Generator().manual_seed(0), margin=1)
    assert found.shape == images.shape
    center = images[:, :, 1:-1, 1:-1]
    for before, after in zip(center, found, strict=True):
        windows = after.unfold(1, 3, 1).unfold(2, 3, 1)
        same = [(windows == w[:, None, None]).all(-1).all(-1).all(0).any() for w in (before, before.flip(2))]
        assert any(same)
    still = crop_and_flip(images, torch.Generator().manual_seed(0), margin=0, flip=False)
    assert torch.equal(still, images)


def test_a_teacher_agrees_with_itself_and_pulls_otherwise() -> None:
    logits = torch.randn(6, 5)
    assert float(soft_cross_entropy(logits, logits, 3.0)) == pytest.approx(0, abs=1e-6)
    other = torch.zeros(6, 5, requires_grad=True)
    torch.autograd.backward(soft_cross_entropy(other, logits))
    torch.testing.assert_close(other.grad, (torch.full((6, 5), 0.2) - logits.softmax(1)) / 6)


def quantized(module: nn.Module, *, labelled: bool = True, count: int = 256, epochs: int = 6) -> dict:
    task = Task(["x"], lambda m, b: m(b["x"]), labelled, classes=True)
    tensors = data(count)[: 2 if labelled else 1]
    training = Training(epochs, 16, Optimizing(5e-3, "adamw", "cosine"))
    return quantize_trained(module, Selection(2, 32), tensors, task, training)[0]


@pytest.mark.parametrize("labelled", [True, False])
def test_training_makes_up_for_two_bits(labelled: bool) -> None:
    module = net()
    fit(module, data(), loss, epochs=12, batch=16)
    original, plain = copy.deepcopy(module), copy.deepcopy(module)
    for layer in (plain[0], plain[2]):
        layer.weight.data = dequantize(quantize_rtn(layer.weight, Selection(2, 32).grid(tuple(layer.weight.shape))))
    facts = quantized(module, labelled=labelled)
    assert isinstance(module[0], PackedLinear) and facts["layers"]["0"]["bits"] == 2
    x = data()[0]
    with torch.no_grad():
        assert mse_loss(module(x).softmax(1), original(x).softmax(1)) < mse_loss(
            plain(x).softmax(1), original(x).softmax(1)
        )
    assert accuracy(module) >= accuracy(plain)


def test_tied_layers_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(torch.relu(self.a(x))))

    module = Tied()
    facts = quantized(module)
    assert facts["ties"] == {"b": "a"}
    assert module.a.codes is module.b.codes


def test_bad_training_data_are_refused_before_training() -> None:
    task = Task(["x"], lambda m, b: m(b["x"]), True, classes=True)
    x, y = data(8)
    for tensors, said in (([x[:1], y[:1]], "two samples"), ([x, y + 7], "don't fit"), ([x * float("nan"), y], "NaN")):
        with pytest.raises(InputError, match=said):
            quantize_trained(net(), Selection(4, 32), tensors, task, Training(1, 4, Optimizing()))


@pytest.mark.parametrize("levels", [63, 127])
def test_weights_trained_on_8_bits_end_on_their_grids(levels: int) -> None:
    module = net()
    task = Task(["x"], lambda m, b: m(b["x"]), True, classes=True)
    train_int8(module, Selection(8, 0), data(), task, Training(4, 16, Optimizing(0.1, "sgd", "cosine")), levels=levels)
    assert accuracy(module) > 0.9
    for layer in (module[0], module[2]):
        assert type(layer) is nn.Linear and not layer._forward_pre_hooks
        codes = layer.weight / layer.weight.detach().abs().amax(1, keepdim=True) * levels
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


def test_activations_of_8_bits_stay_within_half_a_step() -> None:
    x = torch.randn(1000) * 3
    fake = Int8Input()
    found = fake(x)
    assert float((found - x).abs().max()) <= float(x.max() - x.min()) / 255 * 0.51
    assert len(found.unique()) <= 256 and float(fake(torch.zeros(1))) == 0
