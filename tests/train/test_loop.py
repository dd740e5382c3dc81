"""The training loop: what each way of optimizing does to weights, and what is told on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from training_models import HELD, accuracy, data, equal, loss, net, task

from compresskit.errors import InputError
from compresskit.train.loop import Fitted, fit
from compresskit.train.settings import Optimizing, Training
from compresskit.train.validate import Validation

PLAIN = Optimizing(0.1, "sgd", "cosine")


@pytest.mark.parametrize(
    "training",
    [
        Training(12, 16),
        Training(12, 16, PLAIN),
        Training(12, 16, Optimizing(1e-2, "adamw", "cosine", warmup=0.1)),
        Training(12, 16, Optimizing(1e-2, "adamw", "cosine"), ema=0.9),
        Training(12, 16, PLAIN, precision="bfloat16"),
        Training(12, 8, PLAIN, accumulate=2, clip=1.0),
        Training(12, 16, Optimizing(0.05, "muon", "cosine")),
        Training(12, 16, Optimizing(0.05, "muon", "onecycle")),
    ],
)
def test_every_way_of_optimizing_learns(training: Training) -> None:
    module = net(hidden=True)
    fitted = fit(module, data(), loss, training=training)
    assert accuracy(module) > 0.95 and fitted.loss < 0.2
    assert not module.training and all(p.grad is None and p.dtype == torch.float32 for p in module.parameters())
    assert [point["epoch"] for point in fitted.curve] == list(range(1, 13)) and fitted.kept == 12


def test_the_seed_decides_and_what_is_frozen_stays() -> None:
    first, second, third = net(), net(), net()
    third[0].requires_grad_(False)
    before = third[0].weight.detach().clone()
    for module, seed in ((first, 1), (second, 1), (third, 2)):
        fit(module, data(), loss, training=Training(2, 16, seed=seed))
    assert equal(first, second) and not torch.equal(first[2].weight, third[2].weight)
    assert torch.equal(third[0].weight, before)


def test_progress_counts_the_steps_and_tells_the_loss() -> None:
    seen: list[tuple[str, int, int]] = []
    fit(net(), data(64), loss, training=Training(2, 8, accumulate=2), progress=lambda *step: seen.append(step))
    assert [step[1:] for step in seen] == [(step, 8) for step in range(1, 9)]
    assert seen[0][0].startswith("training: epoch 1 of 2, loss 0.") and seen[-1][0].startswith("training: epoch 2 of 2")


def test_divergence_is_an_error() -> None:
    with pytest.raises(InputError, match="diverged in epoch 1: the loss is nan") as found:
        fit(net(), data(), lambda m, p: loss(m, p) * float("nan"), training=Training(1))
    assert found.value.hint == "lower the learning rate"


def test_a_model_without_parameters_is_refused() -> None:
    for module in (nn.Flatten(), net().requires_grad_(False)):
        with pytest.raises(InputError, match="nothing to train"):
            fit(module, data(), loss, training=Training(1))


def test_accumulated_batches_make_the_step_of_one_large_batch() -> None:
    large, small = net(), net()
    fit(large, data(), loss, training=Training(2, 64, PLAIN))
    fit(small, data(), loss, training=Training(2, 16, PLAIN, accumulate=4))
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_incomplete_step_of_accumulated_batches_is_left_out() -> None:
    seen: list[int] = []
    fit(net(), data(100), loss, training=Training(2, 16, accumulate=4), progress=lambda _w, done, _t: seen.append(done))
    assert seen == [1, 2]


def test_clipping_bounds_the_norm_of_a_step() -> None:
    def moved(clip: float) -> float:
        module = net()
        before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
        # The first step of SGD with Nesterov momentum 0.9 goes 1.9 times the gradient.
        how = Optimizing(1.0, "sgd", "cosine", weight_decay=0.0)
        fit(module, data(64), lambda m, p: 100 * loss(m, p), training=Training(1, 64, how, clip=clip))
        return float((nn.utils.parameters_to_vector(module.parameters()).detach() - before).norm()) / 1.9

    assert moved(0.5) == pytest.approx(0.5, rel=1e-4) and moved(0) > 1


def test_the_average_of_weights_follows_and_is_what_remains() -> None:
    weights: list[Tensor] = []
    plain, averaged = net(), net()
    fit(
        plain, data(), loss, training=Training(1, 64, PLAIN), after_step=lambda: weights.append(plain[0].weight.clone())
    )
    fit(averaged, data(), loss, training=Training(1, 64, PLAIN, ema=0.15))
    expected = net()[0].weight.detach()
    for step, weight in enumerate(weights, 1):
        expected = torch.lerp(expected, weight.detach(), 1 - min(0.15, step / (step + 9)))
    torch.testing.assert_close(averaged[0].weight.detach(), expected)
    assert not torch.equal(averaged[0].weight, plain[0].weight)


def test_what_is_put_back_after_a_step_stays() -> None:
    module = net()
    mask = torch.arange(32)[:, None] % 2 == 0

    def cut() -> None:
        module[0].weight.data *= mask

    cut()
    fit(module, data(), loss, training=Training(2, 16, PLAIN, ema=0.9), after_step=cut)
    assert torch.equal(module[0].weight.ne(0).any(1, keepdim=True), mask) and accuracy(module) > 0.9


def validated(lr: float, **options: float) -> tuple[nn.Module, Fitted]:
    module = net()
    train = [tensor[:192] for tensor in data()]
    training = Training(30, 16, Optimizing(lr, "sgd", "cosine", weight_decay=0.0), **options)
    fitted = fit(module, train, loss, training=training, validation=Validation(HELD, task(), loss))
    return module, fitted


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_patience_ends_training_and_keeps_the_best_epoch(ema: float) -> None:
    module, fitted = validated(0.3, patience=3, ema=ema)
    figures = [point["accuracy"] for point in fitted.curve]
    best = figures.index(max(figures)) + 1
    assert fitted.kept == best == len(figures) - 3 and len(figures) < 30
    held = next(HELD.plain(64, 64))
    assert task().right(module, held)[0] / 64 == pytest.approx(max(figures), abs=1e-6)


def test_without_patience_the_last_epoch_stays_and_is_measured() -> None:
    module, fitted = validated(0.3)
    assert fitted.kept == len(fitted.curve) == 30
    assert task().right(module, next(HELD.plain(64, 64)))[0] / 64 == pytest.approx(
        fitted.curve[-1]["accuracy"], abs=1e-6
    )


def test_the_learning_rate_of_the_curve_falls_along_the_cosine() -> None:
    rates = [point["lr"] for point in fit(net(), data(64), loss, training=Training(4, 64, PLAIN)).curve]
    assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)


def test_statistics_of_normalizations_are_estimated_anew_where_asked() -> None:
    module = net(norm=True)
    fit(module, data(), loss, training=Training(1, 64, PLAIN, recalibrate=True))
    x = module[0](data()[0]).detach()
    torch.testing.assert_close(module[1].running_mean, x.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(module[1].running_var, torch.stack([b.var(0) for b in x.split(64)]).mean(0))


class Seeing(nn.Module):
    """A small net for images that flattens them by ``flatten``, and remembers how its inputs lay."""

    def __init__(self, flatten: str) -> None:
        super().__init__()
        self.flatten, self.last = flatten, []
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.last.append(x.is_contiguous(memory_format=torch.channels_last))
        found = self.conv(x).relu()
        return self.out(getattr(found, self.flatten)(len(x), -1))


@pytest.mark.parametrize("flatten", ["reshape", "view"])
def test_images_lie_channels_last_where_the_module_can_take_it(flatten: str) -> None:
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    module = Seeing(flatten)
    fitted = fit(module, [x, (x[:, 0].mean((1, 2)) > 0).long()], loss, training=Training(8, 16, Optimizing(0.05)))
    assert set(module.last) == {flatten == "reshape"}
    assert fitted.curve[-1]["loss"] < 0.8 * fitted.curve[0]["loss"]
    assert all(tensor.is_contiguous() for tensor in module.state_dict().values())


def test_training_without_dropout_draws_nothing_and_leaves_the_rates() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)
            self.recurrent = nn.GRU(8, 8, 2, dropout=0.3, batch_first=True)
            self.last = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            x = x[:, None].expand(-1, 3, -1)
            return self.last(self.recurrent(self.attention(x, x, x)[0])[0][:, -1])

    def trained(dropout: bool) -> tuple[nn.Module, list[float]]:
        torch.manual_seed(0)
        module, losses = Dropping(), []

        def twice(net: nn.Module, part: list[Tensor]) -> Tensor:
            losses.append(float((net(part[0]) - net(part[0])).detach().abs().max()))
            return loss(net, part)

        fit(module, data(64), twice, training=Training(1, 16, PLAIN, dropout=dropout))
        return module, losses

    module, differences = trained(dropout=False)
    assert differences == [0.0] * 4 and min(trained(dropout=True)[1]) > 0
    assert (module.attention.dropout, module.recurrent.dropout, module.last[0].p) == (0.4, 0.3, 0.5)
