"""How good a module is on samples that it isn't trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from compresskit.errors import InputError
from compresskit.train.material import Material
from compresskit.train.task import Loss, Task

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
        """Its name: ``accuracy`` in 0…1 where there are classes, else ``held_out_loss``."""
        return "accuracy" if self.task.labels == "classes" else "held_out_loss"

    def better(self, new: float, old: float | None) -> bool:
        """True when ``new`` is the better figure; NaN never is."""
        if math.isnan(new):
            return False
        return old is None or (new > old if self.metric == "accuracy" else new < old)

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        """The figure of a module in eval mode.

        Raises:
            InputError: No held-out sample has a label.
        """
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        total, count = 0.0, 0
        for cpu in self.samples.plain(self.batch, len(self.samples)):
            part = [tensor.to(device) for tensor in cpu]
            if self.metric == "accuracy":
                right, known = self.task.right(module, part)
                total, count = total + right, count + known
            else:
                total, count = total + float(self.loss(module, part)) * len(part[0]), count + len(part[0])
        if not count:
            raise InputError("none of the held-out samples has a label", "hold out more: --held-out")
        return total / count
