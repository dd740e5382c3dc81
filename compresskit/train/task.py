"""What training aims at: which tensors are inputs and which are labels, and the loss against labels and a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.distill.logits import masked_mean, soft_cross_entropy

Loss = Callable[[nn.Module, Sequence[Tensor]], Tensor]
UNLABELLED = -1
"""The label of a sample that has none, among others that have one."""


@dataclass(frozen=True)
class Task:
    """What training aims at. A *part* is one batch: the inputs in the order of ``names``, then labels if there are any.

    Of scored pairs a part holds the inputs of the first texts, those of the second ones, and the scores.

    Attributes:
        names: Input names of the tensors, in order.
        forward: Calls a module with inputs by name.
        labels: ``classes`` are the last tensor of a part, int64 ``(n,)``, :data:`UNLABELLED` where a sample has none;
            ``tokens`` are the inputs themselves, each the label of the position before; ``scores`` are the last tensor,
            float32 ``(n,)``: what the cosine of two texts' embeddings should be, as ``reach`` says; None is none.
        classes: Outputs are logits along the last axis; else the distance to the teacher is squared.
        share: Of the loss that comes from the teacher where there are labels and a teacher, 0 to 1.
        temperature: Temperature of the teacher's logits.
        reach: The scores that stand for a cosine of 0 and of 1.
    """

    names: Sequence[str]
    forward: Callable[[nn.Module, dict[str, Tensor]], Any]
    labels: Literal["classes", "tokens", "scores"] | None
    classes: bool
    share: float = 0.5
    temperature: float = 2.0
    reach: tuple[float, float] = (0.0, 1.0)

    def inputs(self, part: Sequence[Tensor]) -> dict[str, Tensor]:
        """The inputs of a part by name; of pairs the first texts, then the second ones."""
        if self.labels == "scores":
            count = len(self.names)
            return {n: torch.cat([part[i], part[i + count]]) for i, n in enumerate(self.names)}
        return dict(zip(self.names, part, strict=False))

    def output(self, module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        """The module's first output."""
        return next(tensors_in(self.forward(module, self.inputs(part))))

    def wanted(self, teacher: nn.Module, part: Sequence[Tensor]) -> Tensor:
        """The teacher's first output, without gradients."""
        with torch.no_grad():
            return self.output(teacher, part)

    def mask(self, part: Sequence[Tensor], output: Tensor) -> Tensor | None:
        """Boolean ``(n, length)``, false at padding, for outputs ``(n, length, …)`` of padded text; else None."""
        mask = self.inputs(part).get("attention_mask")
        if mask is None or mask.dim() != 2 or output.dim() < 3 or output.shape[:2] != mask.shape:
            return None
        return mask.ne(0)

    def against_labels(self, found: Tensor, part: Sequence[Tensor]) -> Tensor:
        """Cross-entropy of logits against the labels of a part; of scored pairs the squared error of their cosines.

        The latter is the regression objective of "Sentence-BERT" (Reimers & Gurevych, 2019, arXiv:1908.10084).

        Args:
            found: ``(n, classes)``; for tokens ``(n, length, vocabulary)``; for pairs ``(2n, width)``, or
                ``(2n, length, width)``, which is averaged over the tokens.
            part: With labels.

        Raises:
            InputError: Labels that aren't classes of the model.
        """
        if self.labels == "classes":
            _check_labels(part[-1], found)
            each = F.cross_entropy(found, part[-1], ignore_index=UNLABELLED, reduction="none")
            return masked_mean(each, part[-1] != UNLABELLED)
        if self.labels == "scores":
            low, high = self.reach
            first, second = _pooled(found, self.mask(part, found)).float().chunk(2)
            return F.mse_loss(F.cosine_similarity(first, second), (part[-1] - low) / (high - low))
        ids, mask = self.inputs(part)["input_ids"][:, 1:], self.mask(part, found)
        each = F.cross_entropy(found[:, :-1].transpose(1, 2), ids, reduction="none")
        return masked_mean(each, None if mask is None else mask[:, 1:])

    def against_teacher(self, found: Tensor, wanted: Tensor, part: Sequence[Tensor]) -> Tensor:
        """Distance of outputs from the teacher's, padding left out."""
        mask = self.mask(part, found)
        if self.classes:
            return soft_cross_entropy(found, wanted, self.temperature, mask)
        if mask is not None:
            found, wanted = found[mask], wanted[mask]
        return F.mse_loss(found, wanted) / wanted.square().mean().clamp_min(1e-12)

    def loss(self, teacher: nn.Module | None, module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        """Of one batch, against labels and the teacher as far as there are any."""
        found = self.output(module, part)
        share = 0.0 if teacher is None else self.share if self.labels else 1.0
        total = torch.zeros((), device=found.device)
        if teacher is not None and share:
            total = share * self.against_teacher(found, self.wanted(teacher, part), part)
        if self.labels and share < 1:
            total = total + (1 - share) * self.against_labels(found, part)
        return total

    def right(self, module: nn.Module, part: Sequence[Tensor]) -> tuple[int, int]:
        """How many labels of a part the module's largest logit meets, and how many there are.

        Raises:
            ValueError: There are no classes to meet.
        """
        if self.labels != "classes":
            raise ValueError("accuracy needs classes")
        right = self.output(module, part).argmax(-1) == part[-1]
        return int(right.sum()), int((part[-1] != UNLABELLED).sum())

    @torch.no_grad()
    def check(self, module: nn.Module, part: Sequence[Tensor], labels: Tensor | None) -> None:
        """Refuse what would fail in the middle of an epoch.

        Args:
            module: In eval mode.
            part: Some samples.
            labels: As many as are known beforehand.

        Raises:
            InputError: Too few samples, or labels that aren't classes of the model.
        """
        if len(part[0]) < 2:
            raise InputError("training needs at least two samples", "give more with `data`")
        found = self.output(module, part)
        if not found.isfinite().all():
            raise InputError(
                "the model gives NaN or Inf on the training data", "look at the data's range and `normalize`"
            )
        if self.labels == "classes" and labels is not None and self.share < 1:
            _check_labels(labels, found)
        if self.labels == "scores" and found.dim() not in (2, 3):
            raise InputError(
                f"the model gives {list(found.shape[1:])} a text, an embedding was expected", "scores need embeddings"
            )


def _pooled(found: Tensor, mask: Tensor | None) -> Tensor:
    """Embeddings ``(n, width)``: the mean over the real tokens where there is one vector a token."""
    if found.dim() == 2:
        return found
    if mask is None:
        return found.mean(1)
    weights = mask.to(found.dtype).unsqueeze(-1)
    return (found * weights).sum(1) / weights.sum(1).clamp_min(1)


def _check_labels(labels: Tensor, found: Tensor) -> None:
    """Refuse labels that aren't classes of logits ``(n, classes)``."""
    low, high = (int(v) for v in labels.aminmax())
    if found.dim() != 2 or low < UNLABELLED or high >= found.shape[-1]:
        raise InputError(
            f"labels from {low} to {high} don't fit the model's output {tuple(found.shape[1:])}",
            f"labels are class numbers from 0, or {UNLABELLED} for none; a teacher's outputs need no labels",
        )
