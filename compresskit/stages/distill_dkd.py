"""``distill.dkd``: the labelled class and the other classes, each with a weight of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compresskit.errors import InputError, UsageError
from compresskit.stage import Context
from compresskit.stages.distill_base import Distill, Lesson, Pupil

if TYPE_CHECKING:
    from compresskit.ops.distill.teacher import Stand
    from compresskit.train.task import Loss, Task


class DistillDkd(Distill):
    """Decoupled knowledge distillation (DKD): separate losses for the labelled class and for the others. Needs labels.

    A sample with label -1 uses the class that the teacher predicts.
    """

    method: ClassVar[str] = "dkd"

    temperature: Annotated[float, Field(gt=0, description="Temperature of both models' logits.")] = 4.0
    teacher_share: Annotated[
        float,
        Field(
            ge=0, lt=1, description="Fraction of the loss that comes from the teacher; the rest comes from the labels."
        ),
    ] = 0.5
    target_weight: Annotated[float, Field(ge=0, description="Weight of the labelled class against all others.")] = 1.0
    others_weight: Annotated[float, Field(ge=0, description="Weight of the relations among the other classes.")] = 8.0

    def _check(self, ctx: Context) -> None:
        super()._check(ctx)
        if ctx.data is not None and not ctx.data.labelled:
            raise _needs_labels(ctx.data.name)

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        from compresskit.train.teaching import decoupling, taught

        if pupil.output.dim() != 2 or not pupil.classes:
            raise InputError(
                f"dkd is for classes, the student gives {list(pupil.output.shape[1:])} a sample",
                "`method` kd is for all",
            )
        asked = self._asked_once(pupil, teacher)
        distance = decoupling(self.temperature, self.target_weight, self.others_weight)

        def loss(task: Task) -> Loss:
            if task.labels != "classes":
                raise _needs_labels("`data`")
            return taught(task, asked, distance)

        return Lesson(pupil.module, asked, loss)


def _needs_labels(where: str) -> UsageError:
    return UsageError(f"distill `method` dkd needs class labels, {where} has none", "take `method` standardized")
