"""Quantization-aware training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from training_models import accuracy, data, loss, net, task

from compresskit.errors import InputError
from compresskit.ops.packed.grid import dequantize
from compresskit.ops.packed.modules import PackedLinear
from compresskit.ops.quantize.fake_int8 import Int8Input
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.train.loop import fit
from compresskit.train.material import in_memory
from compresskit.train.qat import quantize_trained, train_int8
from compresskit.train.settings import Optimizing, Training
from compresskit.train.training_plan import TrainingPlan


def plan(training: Training, labelled: bool = True) -> TrainingPlan:
    return TrainingPlan(in_memory(data()[: 2 if labelled else 1]), task(labelled), training)


def quantized(module: nn.Module, *, labelled: bool = True) -> dict:
    training = Training(6, 16, Optimizing(5e-3, "adamw", "cosine"))
    return quantize_trained(module, Selection(2, 32), plan(training, labelled))[0]


@pytest.mark.parametrize("labelled", [True, False])
def test_training_makes_up_for_two_bits(labelled: bool) -> None:
    module = net()
    fit(module, data(), loss, training=Training(12, 16))
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
    x, y = data(8)
    for part, said in (([x[:1], y[:1]], "two samples"), ([x, y + 7], "don't fit"), ([x * float("nan"), y], "NaN")):
        with pytest.raises(InputError, match=said):
            task().check(net(), part, part[-1])


@pytest.mark.parametrize("levels", [63, 127])
def test_weights_trained_on_8_bits_end_on_their_grids(levels: int) -> None:
    module = net()
    keys = set(module.state_dict())
    train_int8(module, Selection(8, 0), plan(Training(4, 16, Optimizing(0.1, "sgd", "cosine"))), levels=levels)
    assert accuracy(module) > 0.9 and set(module.state_dict()) == keys
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
