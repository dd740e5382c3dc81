"""The training loop: every stage that trains gives it a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.ops.batchnorm import recalibrate
from compresskit.stage import Progress, silent
from compresskit.train.augment import Augment
from compresskit.train.dropout import without_dropout
from compresskit.train.ema import Ema
from compresskit.train.material import Material, in_memory
from compresskit.train.processes import Team
from compresskit.train.settings import Training
from compresskit.train.state import Keeper, State, optimizer_tensors, restore_optimizer, tensors_of
from compresskit.train.task import Loss
from compresskit.train.validate import Validation

_SETTLING = 2048
"""Samples that statistics of batch normalizations are estimated from."""


@dataclass(frozen=True)
class Fitted:
    """Result of training.

    Attributes:
        curve: One entry an epoch: ``epoch`` from 1 on, mean ``loss``, last learning rate ``lr``, and the validation's
            figure under its name where there is one.
        kept: The epoch whose weights remain.
    """

    curve: list[dict[str, float]]
    kept: int

    @property
    def loss(self) -> float:
        """The mean loss of the last epoch."""
        return self.curve[-1]["loss"]


def fit(
    module: nn.Module,
    samples: Material | Sequence[Tensor],
    loss: Loss,
    *,
    training: Training,
    augment: Augment | None = None,
    validation: Validation | None = None,
    keeper: Keeper | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Progress = silent,
) -> Fitted:
    """Train a module in place, and leave it in eval mode.

    Args:
        module: Any module, on the device where it is to be trained; parameters that don't require gradients stay.
        samples: Material, or tensors that are equally long along the first axis.
        loss: From the module and one batch to a scalar, the mean over the samples.
        training: How long and how. A last incomplete step of an epoch is left out.
        augment: Changes the first tensor of each batch; draws from the generator that it is given.
        validation: Measured after each epoch; patience needs it.
        keeper: Where the state of training is kept at each epoch's end; a run of the same key goes on from there.
            Processes on several machines need a folder that all of them see.
        after_step: Called when parameters have moved: to put back what has to stay as it is.
        progress: Called after each step.

    Raises:
        InputError: No parameter requires gradients, or the loss became NaN or Inf.
        UsageError: A batch can't be shared equally by the processes that were launched together.
        ValueError: Patience without a validation.
    """
    if training.patience and validation is None:
        raise ValueError("patience needs a validation")
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError("there is nothing to train: the model has no parameter that takes gradients")
    material = in_memory(samples) if isinstance(samples, Sequence) else samples
    run = _Run(module, material, loss, training, augment, validation, keeper, after_step, progress)
    run.resume()
    with nullcontext() if training.dropout else without_dropout(module):
        while run.epoch < training.epochs and not run.stopped:
            run.one_epoch()
        return run.finish()


class _Step(nn.Module):
    """The loss as a module, so that what joins processes sees its forward pass, and the loss the bare module."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module = module
        self.loss = (loss,)  # in a tuple: a loss that is a module isn't trained

    def forward(self, *part: Tensor) -> Tensor:
        return self.loss[0](self.module, part)


@dataclass
class _Run:
    """One training: what is given, and where it stands."""

    module: nn.Module
    samples: Material
    loss: Loss
    training: Training
    augment: Augment | None
    validation: Validation | None
    keeper: Keeper | None
    after_step: Callable[[], None] | None
    progress: Progress
    epoch: int = 0
    stopped: bool = False
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    layout: torch.memory_format | None = None

    def __post_init__(self) -> None:
        how, rows = self.training, len(self.samples)
        self.team = Team()
        self.device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        if self.team.rank:
            self.progress = silent
        self.batch = min(how.batch, rows)
        self.accumulate = min(how.accumulate, rows // self.batch)
        self.steps = rows // (self.batch * self.accumulate)
        self.optimizer = how.optimizing.optimizer(self.module)
        self.schedule = how.optimizing.scheduler(self.optimizer, how.epochs * self.steps)
        self.average = Ema(self.module, how.ema) if how.ema else None
        self.order = torch.Generator().manual_seed(how.seed)
        torch.manual_seed(how.seed + self.team.rank)
        self.step = self.team.joined(_Step(self.module, self.loss))

    def resume(self) -> None:
        """Go on from the state that was kept last, if there is one."""
        found = self.keeper.load() if self.keeper is not None else None
        if found is None:
            return
        facts = found.facts
        self.module.load_state_dict(found.under("module"))
        restore_optimizer(self.optimizer, found.under("optimizer"), facts["groups"])
        self.schedule.load_state_dict(facts["schedule"])
        if self.average is not None:
            kept = found.under("average")
            self.average.tensors = {name: tensor.to(self.device) for name, tensor in kept.items()}
            self.average.steps = facts["steps"]
        self.best, self.best_epoch = found.under("best"), facts["best_epoch"]
        self.curve, self.epoch, self.stopped = facts["curve"], facts["epoch"], facts["stopped"]
        self.order.set_state(found.tensors["random/order"])
        torch.set_rng_state(found.tensors["random/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(found.tensors["random/cuda"], self.device)

    def _state(self) -> State:
        tensors = {
            **{f"module/{name}": tensor for name, tensor in tensors_of(self.module).items()},
            **{f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(self.optimizer)},
            **{f"best/{name}": tensor for name, tensor in self.best.items()},
            "random/order": self.order.get_state(),
            "random/cpu": torch.get_rng_state(),
        }
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        facts = {
            "groups": self.optimizer.state_dict()["param_groups"],
            "schedule": self.schedule.state_dict(),
            "steps": self.average.steps if self.average is not None else 0,
            "best_epoch": self.best_epoch,
            "curve": self.curve,
            "epoch": self.epoch,
            "stopped": self.stopped,
        }
        return State(tensors, facts)

    def one_epoch(self) -> None:
        """Train on all samples once, measure, and keep the state."""
        self.module.train()
        mean = self._train()
        self.epoch += 1
        point = {"epoch": self.epoch, "loss": round(mean, 6), "lr": float(f"{self.lr:.6g}")}
        if self.validation is not None:
            figure = self._measured(self.validation)
            point[self.validation.metric] = round(figure, 6)
            known = self.curve[self.best_epoch - 1][self.validation.metric] if self.best_epoch else None
            if self.validation.better(point[self.validation.metric], known):
                self._remember()
        self.curve.append(point)
        self.stopped = bool(self.training.patience) and self.epoch - self.best_epoch >= self.training.patience
        if self.keeper is not None and self.team.rank == 0:
            self.keeper.save(self._state())

    def finish(self) -> Fitted:
        """The weights that remain."""
        kept = self.epoch
        if self.training.patience and self.best:
            self.module.load_state_dict(self.best)
            kept = self.best_epoch
        elif self.average is not None:
            self.module.load_state_dict(self.average.tensors)
        self.module.eval()
        if self.training.recalibrate:
            self._recalibrate()
        self.team.agree(list(self.module.state_dict().values()))
        self.module.zero_grad(set_to_none=True)
        return Fitted(self.curve, kept)

    def _train(self) -> float:
        """One epoch of steps; the mean loss."""
        total, taken, done = 0.0, 0.0, 0
        for index, part in enumerate(islice(self._parts(), self.steps * self.accumulate), 1):
            whole = index % self.accumulate == 0
            with nullcontext() if whole else self.team.apart(self.step):
                taken += self._backward(part)
            if not whole:
                continue
            total, taken, done = total + taken, 0.0, done + 1
            self._move()
            what = f"training: epoch {self.epoch + 1} of {self.training.epochs}, loss {total / done:.4g}"
            self.progress(what, self.epoch * self.steps + done, self.training.epochs * self.steps)
        return self.team.mean(total / done)

    def _parts(self) -> Iterator[list[Tensor]]:
        """This process's samples of each batch, on the device."""
        for whole in self.samples.epoch(self.batch, self.order):
            part = list(whole)
            if self.augment is not None:
                part[0] = self.augment(part[0], self.order)
            if part[0].dim() == 4 and part[0].is_floating_point():
                part[0] = part[0].to(memory_format=self._layout(part))
            yield [tensor.to(self.device, non_blocking=True) for tensor in self.team.share(part)]

    def _layout(self, part: list[Tensor]) -> torch.memory_format:
        """Of images: convolutions are faster channels last; a module that views what lies otherwise can't take it."""
        if self.layout is None:
            images = part[0][:1].to(self.device, memory_format=torch.channels_last)
            rest = [tensor[:1].to(self.device) for tensor in part[1:]]
            self.module.eval()
            try:
                with torch.no_grad(), torch.random.fork_rng():
                    self.loss(self.module, [images, *rest])
                self.layout = torch.channels_last
            except RuntimeError:
                self.layout = torch.contiguous_format
            self.module.train()
        return self.layout

    def _backward(self, part: list[Tensor]) -> float:
        """Add one batch's gradient; its part of the step's loss."""
        with self._autocast():
            value = self.step(*part) / self.accumulate
        found = float(value.detach())
        if not math.isfinite(found):
            raise InputError(
                f"training diverged in epoch {self.epoch + 1}: the loss is {found}", "lower the learning rate"
            )
        torch.autograd.backward(value)
        return found

    def _move(self) -> None:
        if self.training.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.training.clip)
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.after_step is not None:
            self.after_step()
        if self.average is not None:
            self.average.follow(self.module)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.training.autocasts(self.device):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """The module as it would be if training ended here."""
        self.module.eval()
        with self.average.instead(self.module) if self.average is not None else nullcontext():
            yield

    def _measured(self, validation: Validation) -> float:
        with self._shown(), self._autocast():
            return self.team.mean(validation(self.module))

    def _remember(self) -> None:
        """Keep the weights of this epoch as the best."""
        self.best_epoch = self.epoch
        if self.training.patience:
            with self._shown():
                self.best = {name: t.detach().clone() for name, t in self.module.state_dict().items()}

    def _recalibrate(self) -> None:
        parts = self.samples.plain(self.batch, _SETTLING)
        batches = [{str(i): tensor.to(self.device) for i, tensor in enumerate(part)} for part in parts]
        with self._autocast():
            recalibrate(self.module, lambda module, batch: self.loss(module, list(batch.values())), batches)
