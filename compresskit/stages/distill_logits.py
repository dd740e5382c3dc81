"""``distill.kd`` and ``standardized``: what a teacher says of each sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compresskit.stage import MODEL, Searched
from compresskit.stages.distill_base import Distill, Lesson, Pupil

if TYPE_CHECKING:
    from compresskit.ops.distill.teacher import Stand


class DistillKd(Distill):
    """Knowledge distillation (KD): match the teacher's probabilities at a temperature.

    Labels are used if `data` has any. A student that gives embeddings or other values is trained on the values.
    """

    method: ClassVar[str] = "kd"
    searched: ClassVar = Searched(
        ("cnn", "linear", "tiny"), {"teacher": MODEL, "optimizer": "muon", "batch_size": 128}, preview=None
    )

    temperature: Annotated[float, Field(gt=0, description="Temperature of both models' logits.")] = 4.0

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        from compresskit.train.teaching import by_classes, taught

        distance, notes = by_classes(pupil.classes, self.temperature, standardize=False)
        asked = self._asked_once(pupil, teacher)
        return Lesson(pupil.module, asked, lambda task: taught(task, asked, distance), notes=notes)


class DistillStandardized(Distill):
    """Match the teacher's logits, standardized for each sample. Labels are used if `data` has any.

    The student learns the order and relations of the classes, not the teacher's confidence. Use `method` kd where
    probabilities matter. A student that gives embeddings or other values is trained on the values. Two-class models and
    language models are trained as by kd.
    """

    # The weight is the paper's own: 9 beside 0.1 of the labels. Few epochs at a high rate diverge with it unclipped.

    method: ClassVar[str] = "standardized"

    temperature: Annotated[float, Field(gt=0, description="Temperature of both models' standardized logits.")] = 2.0
    logits_weight: Annotated[
        float,
        Field(gt=0, description="Weight of the loss on standardized logits, relative to the label loss."),
    ] = 10.0
    clip: Annotated[
        float, Field(ge=0, description="Gradient clipping: maximum norm of the gradient; 0 turns it off.")
    ] = 2.0

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        from compresskit.train.teaching import by_classes, taught

        distance, notes = by_classes(
            pupil.classes, self.temperature, standardize=pupil.task != "causal-lm", weight=self.logits_weight
        )
        asked = self._asked_once(pupil, teacher)
        return Lesson(pupil.module, asked, lambda task: taught(task, asked, distance), notes=notes)
