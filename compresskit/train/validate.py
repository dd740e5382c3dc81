"""How good a module is on samples that it isn't trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from compresskit.train.material import Material
from compresskit.train.task import UNLABELLED, Loss, Task

_BATCH = 256


@dataclass(frozen=True)
class Validation:
    """A figure of a module on held-out samples.

    Attributes:
        samples: Held out of training.
        task: Knows what labels are.
        loss: What is trained on; the figure where there are no classes.
        batch: Samples at once.
    """

    samples: Material
    task: Task
    loss: Loss
    batch: int = _BATCH

    @property
    def metric(self) -> Literal["accuracy", "held_out_loss"]:
        """Its name: ``accuracy`` in 0…1 where a sample has a class, else ``held_out_loss``."""
        return "accuracy" if self._labelled else "held_out_loss"

    @cached_property
    def _labelled(self) -> bool:
        parts = self.samples.plain(self.batch, len(self.samples))
        return self.task.labels == "classes" and any(bool((part[-1] != UNLABELLED).any()) for part in parts)

    def better(self, new: float, old: float | None) -> bool:
        """True when ``new`` is the better figure; NaN never is."""
        if math.isnan(new):
            return False
        return old is None or (new > old if self.metric == "accuracy" else new < old)

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        """The figure of a module in eval mode."""
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        total, count = 0.0, 0
        for cpu in self.samples.plain(self.batch, len(self.samples)):
            part = [tensor.to(device) for tensor in cpu]
            if self.metric == "accuracy":
                right, known = self.task.right(module, part)
                total, count = total + right, count + known
            else:
                total, count = total + float(self.loss(module, part)) * len(part[0]), count + len(part[0])
        return total / count
