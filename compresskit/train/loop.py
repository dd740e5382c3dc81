"""The training loop: SGD or AdamW under a falling learning rate, on samples that fit into memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.stage import Progress, silent

Loss = Callable[[nn.Module, Sequence[Tensor]], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Optimizing:
    """How parameters move.

    Attributes:
        lr: Peak learning rate.
        kind: ``sgd`` with Nesterov momentum 0.9, or ``adamw`` ("Decoupled Weight Decay Regularization", Loshchilov &
            Hutter, 2019).
        schedule: ``onecycle`` rises for the first 30 % of the steps (Smith & Topin, "Super-Convergence", 2019);
            ``cosine`` falls to zero from the start on ("SGDR", Loshchilov & Hutter, 2017), after ``warmup``.
        warmup: Share of the steps in which the rate rises from zero, for ``cosine``.
        weight_decay: L2 penalty of parameters of two axes and more; for ``onecycle`` of all.
        ema: Decay of a moving average of the weights and statistics, which is what remains at the end; 0 for none.
    """

    lr: float = 0.1
    kind: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["onecycle", "cosine"] = "onecycle"
    warmup: float = 0.0
    weight_decay: float = 5e-4
    ema: float = 0.0


def fit(
    module: nn.Module,
    tensors: Sequence[Tensor],
    loss: Loss,
    *,
    epochs: int,
    batch: int = 64,
    optimizing: Optimizing = Optimizing(),
    augment: Augment | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> float:
    """Train a module in place, and leave it in eval mode.

    Args:
        module: Any module; parameters that don't require gradients stay as they are.
        tensors: Equally long along the first axis; each step takes the same rows of all.
        loss: From the module and one batch of ``tensors`` to a scalar.
        epochs: Passes over the data, 1 or more.
        batch: Rows of a step; the last incomplete batch of an epoch is left out.
        optimizing: How parameters move.
        augment: Changes the first tensor of each batch; draws from the generator that it is given.
        seed: Of the order of the samples, of ``augment``, and of what the module itself draws.
        progress: Called after each step.

    Returns:
        The mean loss of the last epoch.

    Raises:
        InputError: The loss became NaN or Inf.
    """
    rows = len(tensors[0])
    batch = min(batch, rows)
    total = epochs * (rows // batch)
    optimizer = _optimizer(module, optimizing)
    schedule = _schedule(optimizer, optimizing, total)
    average = copy.deepcopy(module) if optimizing.ema else None
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    module.train()
    losses: list[float] = []
    for step, rows_of_step in enumerate(_steps(rows, batch, epochs, order), 1):
        part = [t[rows_of_step] for t in tensors]
        if augment is not None:
            part[0] = augment(part[0], order)
        optimizer.zero_grad()
        value = loss(module, part)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise InputError(f"training diverged at step {step}: the loss is {losses[-1]}", "lower the learning rate")
        torch.autograd.backward(value)
        optimizer.step()
        schedule.step()
        if average is not None:
            _follow(average, module, min(optimizing.ema, step / (step + 9)))
        progress("training", step, total)
    if average is not None:
        module.load_state_dict(average.state_dict())
    module.eval()
    module.zero_grad(set_to_none=True)
    last = losses[-(total // epochs) :]
    return sum(last) / len(last)


def crop_and_flip(images: Tensor, generator: torch.Generator, margin: int = 4, flip: bool = True) -> Tensor:
    """Images ``(n, c, h, w)`` moved by up to ``margin`` pixels over zeros; with ``flip`` half of them mirrored."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (margin,) * 4)
    down, right = torch.randint(2 * margin + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    each = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _steps(rows: int, batch: int, epochs: int, order: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.split(torch.randperm(rows, generator=order)[: rows // batch * batch], batch)


def _optimizer(module: nn.Module, how: Optimizing) -> torch.optim.Optimizer:
    found = [p for p in module.parameters() if p.requires_grad]
    if how.schedule == "onecycle":
        groups = [{"params": found, "weight_decay": how.weight_decay}]
    else:
        decayed, plain = [p for p in found if p.dim() > 1], [p for p in found if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": how.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if how.kind == "adamw":
        return torch.optim.AdamW(groups, lr=how.lr)
    return torch.optim.SGD(groups, lr=how.lr, momentum=0.9, nesterov=True)


def _schedule(optimizer: torch.optim.Optimizer, how: Optimizing, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if how.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, total_steps=steps)
    rising = max(1, int(how.warmup * steps))

    def factor(step: int) -> float:
        if step < rising and how.warmup:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * step / steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    for old, new in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)
