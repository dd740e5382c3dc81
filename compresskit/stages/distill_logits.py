"""``distill.kd`` and ``standardized``: what a teacher says of each sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compresskit.stage import MODEL, Searched
from compresskit.stages.distill_base import Distill, Lesson, Pupil

if TYPE_CHECKING:
    from compresskit.ops.distill.teacher import Stand


class DistillKd(Distill):
    """Learn the teacher's probabilities, softened by a temperature. Labels count too, where `data` has any.

    A student of embeddings or other values learns the values.
    """

    method: ClassVar[str] = "kd"
    searched: ClassVar = Searched(
        ("cnn", "linear", "tiny"), {"teacher": MODEL, "optimizer": "muon", "batch_size": 128}, preview=None
    )

    temperature: Annotated[float, Field(gt=0, description="Of both models' logits.")] = 4.0

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        from compresskit.train.teaching import by_classes, taught

        distance, notes = by_classes(pupil.classes, self.temperature, standardize=False)
        asked = self._asked_once(pupil, teacher)
        return Lesson(pupil.module, asked, lambda task: taught(task, asked, distance), notes=notes)


class DistillStandardized(Distill):
    """Learn the order and the relations of the teacher's classes, not how sure it is. Labels count too, if any.

    A student of embeddings or other values learns the values; two classes and language models are taught as by kd.
    Without labels the student's confidence isn't the teacher's: `method` kd where probabilities matter.
    """

    # The weight is the paper's own: 9 beside 0.1 of the labels. Few epochs at a high rate diverge with it unclipped.

    method: ClassVar[str] = "standardized"

    temperature: Annotated[float, Field(gt=0, description="Of both models' standardized logits.")] = 2.0
    logits_weight: Annotated[
        float,
        Field(gt=0, description="Of the distance between standardized logits, which is small, beside that of labels."),
    ] = 10.0
    clip: Annotated[float, Field(ge=0, description="Largest norm of a step's gradient; 0: any.")] = 2.0

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        from compresskit.train.teaching import by_classes, taught

        distance, notes = by_classes(
            pupil.classes, self.temperature, standardize=pupil.task != "causal-lm", weight=self.logits_weight
        )
        asked = self._asked_once(pupil, teacher)
        return Lesson(pupil.module, asked, lambda task: taught(task, asked, distance), notes=notes)
