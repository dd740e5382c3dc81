"""Losses of a student from what a teacher says, and from what stands between its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.distill.features import Tapped, feature_distance, projections
from compresskit.ops.distill.logits import decoupled, soft_cross_entropy, standardized
from compresskit.ops.distill.outputs import embedding_distance
from compresskit.ops.distill.pairs import Pairs, blocks_of, even_pairs, named_pairs
from compresskit.ops.distill.teacher import Stand
from compresskit.train.task import Loss, Task

Distance = Callable[[Task, Tensor, Tensor, Sequence[Tensor]], Tensor]
"""Of a task, the student's and the teacher's outputs and the part they are of: a scalar."""


def by_classes(
    classes: int, temperature: float, *, standardize: bool, weight: float = 1.0
) -> tuple[Distance, list[str]]:
    """What suits outputs that tell so many classes apart.

    Args:
        classes: 0 where outputs are no class logits: their values are learnt.
        temperature: Of logits.
        standardize: Standardize logits where there are enough classes for it.
        weight: Of the distance between standardized logits.

    Returns:
        The distance, and what a user should know of the choice.
    """
    if not classes:
        return _of_values, ["outputs are not class logits: the student was trained on their values"]

    def distance(task: Task, found: Tensor, wanted: Tensor, part: Sequence[Tensor]) -> Tensor:
        mask = task.mask(part, found)
        if standardize and classes > 2:
            return weight * standardized(found, wanted, temperature, mask)
        return soft_cross_entropy(found, wanted, temperature, mask)

    two = ["logits of two classes cannot be standardized: the student was trained on probabilities"]
    return distance, two if standardize and classes == 2 else []


def _of_values(task: Task, found: Tensor, wanted: Tensor, part: Sequence[Tensor]) -> Tensor:
    return embedding_distance(found, wanted, task.mask(part, found))


def decoupling(temperature: float, target_weight: float, others_weight: float) -> Distance:
    """:func:`~compresskit.ops.distill.logits.decoupled`; where there is no label the teacher's choice stands for it."""

    def distance(_task: Task, found: Tensor, wanted: Tensor, part: Sequence[Tensor]) -> Tensor:
        labels = torch.where(part[-1] < 0, wanted.argmax(-1), part[-1])
        return decoupled(found, wanted, labels, temperature, target_weight, others_weight)

    return distance


def taught(task: Task, teacher: nn.Module, distance: Distance) -> Loss:
    """A loss against the teacher's outputs, and labels where there are any.

    Args:
        task: Knows what is in a batch, and which share of the loss is the teacher's.
        teacher: Called as the student is.
        distance: Between outputs.
    """

    def loss(module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        wanted = task.wanted(teacher, part) if asks(task) else None
        return against(task, task.output(module, part), wanted, distance, part)

    return loss


def asks(task: Task) -> bool:
    """Whether what the teacher says counts."""
    return not task.labels or task.share > 0


def against(task: Task, found: Tensor, wanted: Tensor | None, distance: Distance, part: Sequence[Tensor]) -> Tensor:
    """The loss of outputs against the teacher's, and labels where there are any; None for a teacher not asked."""
    if wanted is None:
        return task.against_labels(found, part)
    return _with_labels(task, distance(task, found, wanted, part), found, part)


def guided(task: Task, teacher: nn.Module, distance: Distance, weight: float) -> Loss:
    """The same, with the distance between features of layers added to that of outputs.

    Args:
        task: What training aims at.
        teacher: Called as the student is; gives, as it does, its output and features: see
            :class:`~compresskit.ops.distill.features.Tapped`.
        distance: Between outputs.
        weight: Of the features' distance.
    """

    def loss(module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        inputs = task.inputs(part)
        with torch.no_grad():
            said, wanted_features = task.forward(teacher, inputs)
        out, features = task.forward(module, inputs)
        found, wanted = next(tensors_in(out)), next(tensors_in(said))
        mask = inputs.get("attention_mask")
        between = feature_distance(features, wanted_features, None if mask is None else mask.ne(0))
        return _with_labels(task, distance(task, found, wanted, part) + weight * between, found, part)

    return loss


def _with_labels(task: Task, against_teacher: Tensor, found: Tensor, part: Sequence[Tensor]) -> Tensor:
    share = task.share if task.labels else 1.0
    if share == 1:
        return against_teacher
    return share * against_teacher + (1 - share) * task.against_labels(found, part)


@torch.no_grad()
def joined(
    student: nn.Module,
    stand: Stand,
    run: Callable[[nn.Module], Any],
    patterns: Sequence[str],
    hidden: float | None,
) -> tuple[Tapped, Stand, Pairs]:
    """Student and teacher with the layers that are matched looked into.

    Args:
        student: In eval mode.
        stand: The teacher in the student's place.
        run: Calls a module on some samples as the student is called.
        patterns: ``STUDENT=TEACHER`` globs; none matches the blocks of both evenly.
        hidden: See :func:`~compresskit.ops.distill.features.projections`.

    Raises:
        UsageError: A pattern doesn't fit.
        InputError: There are no blocks to match, or layers of different kinds.
    """
    teacher = stand.teacher
    if patterns:
        pairs = named_pairs(patterns, student, teacher)
    else:
        own = blocks_of(student, lambda: run(student), "student")
        pairs = even_pairs(own, blocks_of(teacher, lambda: run(stand), "teacher"))
    names, others = [one for one, _ in pairs], [other for _, other in pairs]
    tapped = stand.holding(Tapped(teacher, others))
    _, found = run(Tapped(student, names))
    _, wanted = run(tapped)
    return Tapped(student, names, projections(found, wanted, pairs, hidden)), tapped, pairs
