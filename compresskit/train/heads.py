"""Training the heads of early exits: alone on features that are kept, or together with the body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.facts.route import ExitFacts
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.distill.logits import masked_mean, soft_cross_entropy
from compresskit.ops.route.exits import ExitHead, watched
from compresskit.train.task import UNLABELLED, Loss, Task

_NARROW = 1e-3
"""Standard deviation below which a feature is taken for a constant."""


class Heads(nn.Module):
    """Heads side by side, each on what it sees of the samples; features of heads without convolutions are standardized.

    Args:
        layers: What each is.
        kept: What each sees, as :meth:`ExitHead.kept` gives it, for all samples; in the order of ``layers``.
    """

    def __init__(self, layers: Mapping[str, ExitFacts], kept: Sequence[Tensor]) -> None:
        super().__init__()
        self.heads = nn.ModuleList([ExitHead(fact) for fact in layers.values()])
        found = [
            (torch.zeros(()), torch.ones(())) if fact.convs else _spread(features)
            for fact, features in zip(layers.values(), kept, strict=True)
        ]
        self._levels = [mean for mean, _ in found], [std for _, std in found]

    def forward(self, *kept: Tensor) -> list[Tensor]:
        """The logits of each head."""
        pairs = zip(self._heads(), kept, *self._levels, strict=True)
        return [head.of_kept((features.float() - mean) / std) for head, features, mean, std in pairs]

    def _heads(self) -> list[ExitHead]:
        return [head for head in self.heads if isinstance(head, ExitHead)]

    @torch.no_grad()
    def fill(self, heads: Sequence[ExitHead]) -> None:
        """Give heads that see the features as they are the values of these."""
        for own, other, mean, std in zip(self._heads(), heads, *self._levels, strict=True):
            other.load_state_dict(own.state_dict())
            if other.convs is not None:
                continue
            first = other.last if other.hidden is None else other.hidden
            weight = first.weight / std
            first.weight.copy_(weight)
            first.bias.sub_(weight @ mean)


def _spread(features: Tensor) -> tuple[Tensor, Tensor]:
    values = features.float()
    return values.mean(0), values.std(0).clamp_min(_NARROW)


def from_last(share: float, temperature: float) -> Loss:
    """The loss of :class:`Heads`: each against the last exit's logits, and against labels where they count.

    A part holds the features of each head, the last exit's logits, then labels if there are any.

    Args:
        share: Of the loss that comes from the last exit, 0 to 1.
        temperature: Of its logits.
    """

    def loss(module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        count = len(module.get_submodule("heads")._modules)
        found, wanted = module(*part[:count]), part[count]
        labels = part[count + 1] if len(part) > count + 1 else None
        return sum_of(found, wanted, labels, share, temperature)

    return loss


def sum_of(found: Sequence[Tensor], wanted: Tensor, labels: Tensor | None, share: float, temperature: float) -> Tensor:
    """The losses of several exits, added."""
    total = torch.zeros((), device=wanted.device)
    for logits in found:
        if labels is None or share > 0:
            total = total + (share if labels is not None else 1) * soft_cross_entropy(logits, wanted, temperature)
        if labels is not None and share < 1:
            each = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="none")
            total = total + (1 - share) * masked_mean(each, labels != UNLABELLED)
    return total


class Tapping(nn.Module):
    """A module with exits that gives the logits of all of them, the last one's at the end."""

    def __init__(self, module: nn.Module, blocks: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.config = getattr(module, "config", None)
        self._blocks = tuple(blocks)

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Called as the module is."""
        found: list[Tensor] = []
        with watched(self.module, dict.fromkeys(self._blocks), (args, kwargs), found.append):
            out = self.module(*args, **kwargs)
        return [*found, next(tensors_in(out))]


def together(task: Task, teacher: nn.Module, share: float, temperature: float) -> Loss:
    """The loss of :class:`Tapping`: every exit, the last one too, against the teacher, and labels where they count."""

    def loss(module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        wanted = task.wanted(teacher, part)
        found = list(tensors_in(task.forward(module, task.inputs(part))))
        labels = part[-1] if task.labels == "classes" else None
        return sum_of(found, wanted, labels, share, temperature)

    return loss
