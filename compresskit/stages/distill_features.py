"""``distill.features`` and ``layers``: what stands between a teacher's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from compresskit.stage import Searched
from compresskit.stages.distill_base import Distill, Lesson, Pupil

if TYPE_CHECKING:
    from compresskit.ops.distill.teacher import Stand


class _BetweenLayers(Distill):
    """What both have in common."""

    sees_layers: ClassVar[bool] = True

    layer_pairs: Annotated[
        tuple[str, ...],
        Field(description="STUDENT=TEACHER, names or globs of layers to match in order; repeatable. (blocks, evenly)"),
    ] = ()
    layer_weight: Annotated[
        float, Field(gt=0, description="Of the distance between layers, beside that of outputs and labels.")
    ] = 1.0
    logits: Annotated[
        Literal["standardized", "kd"],
        Field(description="How class logits are held against the teacher's: as `method` standardized or kd does."),
    ] = "standardized"

    def _lesson(self, pupil: Pupil, teacher: Stand, hidden: float | None) -> Lesson:
        """A student and a teacher whose layers are looked into.

        Args:
            pupil: The student.
            teacher: In its place.
            hidden: Share of positions that is hidden from what generates the teacher's features; None: no generator.
        """
        from compresskit.train.teaching import by_classes, guided, joined

        standardize = self.logits == "standardized" and pupil.task != "causal-lm"
        distance, notes = by_classes(pupil.classes, self.temperature, standardize=standardize)
        named = self.layer_pairs or [f"{mine}={origin}" for mine, origin in pupil.origins.items()]
        student, stand, pairs = joined(pupil.module, teacher, pupil.run, named, hidden)
        return Lesson(
            student,
            stand,
            lambda task: guided(task, stand, distance, self.layer_weight),
            {"pairs": dict(pairs)},
            [*notes, f"learnt from {len(pairs)} layers: {', '.join(f'{a} from {b}' for a, b in pairs)}"],
        )


class DistillFeatures(_BetweenLayers):
    """Learn to generate the teacher's features from the student's with some hidden, for models of images (MGD).

    What generates them is trained with the student and thrown away. Outputs and labels count too.
    """

    method: ClassVar[str] = "features"

    hidden: Annotated[float, Field(ge=0, lt=1, description="Share of positions that the generator is not shown.")] = 0.5

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        return self._lesson(pupil, teacher, self.hidden)


class DistillLayers(_BetweenLayers):
    """Learn the teacher's hidden states or feature maps layer by layer: from every block the one as far along.

    Where widths differ, a projection is trained with the student and thrown away. Outputs and labels count too.
    """

    method: ClassVar[str] = "layers"
    searched: ClassVar = Searched(
        ("text",), {"batch_size": 32, "lr": 0.0005}, preview={"epochs": 1, "train_samples": 2000}
    )

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        return self._lesson(pupil, teacher, None)
