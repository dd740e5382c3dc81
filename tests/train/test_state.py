"""Training that was killed and goes on: the same bytes as without the kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_models import HELD, data, equal, loss, net, task

from compresskit.errors import InputError
from compresskit.train.loop import Fitted, fit
from compresskit.train.settings import Optimizing, Training
from compresskit.train.state import Keeper, key_of
from compresskit.train.validate import Validation


class Killed(Exception):
    """Stands for a kill."""


WAYS = {
    "sgd": Training(5, 16, Optimizing(0.1, "sgd", "cosine")),
    "onecycle": Training(5, 16),
    "adamw, ema": Training(5, 16, Optimizing(1e-2, "adamw", "cosine", warmup=0.2), ema=0.9, clip=1.0),
    "muon": Training(5, 16, Optimizing(0.05, "muon", "cosine")),
    "patience": Training(30, 16, Optimizing(0.3, "sgd", "cosine"), patience=3),
}


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + 0.1 * torch.randn(images.shape, generator=generator)


def trained(how: Training, folder: Path | None, *, steps: int = 0) -> tuple[nn.Module, Fitted]:
    """Train a net with batch normalization and dropout; ``steps`` > 0 kills it after so many."""
    module = net(norm=True, dropout=0.2, hidden=True)
    left = steps

    def kill() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    fitted = fit(
        module, [t[:192] for t in data()], loss, training=how, augment=noisy, after_step=kill,
        validation=Validation(HELD, task(), loss), keeper=folder and Keeper(folder, key_of({}, module)),
    )  # fmt: skip
    return module, fitted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [7, 24, 41])
def test_a_kill_leaves_no_trace_in_the_weights(way: str, steps: int, tmp_path: Path) -> None:
    whole, told = trained(WAYS[way], None)
    with pytest.raises(Killed):
        trained(WAYS[way], tmp_path, steps=steps)
    torch.manual_seed(5)  # another process
    again, told_again = trained(WAYS[way], tmp_path)
    assert equal(whole, again) and told == told_again


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first, told = trained(WAYS["sgd"], tmp_path)
    again, told_again = trained(WAYS["sgd"], tmp_path, steps=1)
    assert equal(first, again) and told == told_again
    assert len(list(tmp_path.iterdir())) == 1


def test_other_weights_or_options_are_another_training(tmp_path: Path) -> None:
    module = net()
    keys = {key_of({"lr": 1}, module), key_of({"lr": 2}, module), key_of({"lr": 1}, net(norm=True))}
    assert len(keys) == 3 and key_of({"lr": 1}, net()) in keys
    first, second = (Keeper(tmp_path, key) for key in sorted(keys)[:2])
    fit(module, data(), loss, training=Training(1), keeper=first)
    assert first.load() is not None and second.load() is None
    assert (first.others(), second.others()) == (0, 1)


def test_a_foreign_or_damaged_state_is_refused(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, "a" * 64)
    fit(net(), data(), loss, training=Training(1), keeper=keeper)
    whole = keeper.path.read_bytes()
    with pytest.raises(InputError, match="state of another training"):
        Keeper(tmp_path, "a" * 63 + "b").load()
    keeper.path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="cut off"):
        keeper.load()
    other = whole.replace(b'"training":', b'"tralning":')
    keeper.path.write_bytes(other)
    with pytest.raises(InputError, match="not a training state"):
        keeper.load()


def test_a_module_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> str:
            return "odd"

        def set_extra_state(self, state: str) -> None:
            assert state == "odd"

    module = Odd(8, 2)
    with pytest.raises(InputError, match="'_extra_state' is no tensor"):
        key_of({}, module)
