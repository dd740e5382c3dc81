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
        Field(
            description="Layer pairs STUDENT=TEACHER; names or globs, matched in order. Repeatable. (evenly "
            "spaced blocks)"
        ),
    ] = ()
    layer_weight: Annotated[
        float, Field(gt=0, description="Weight of the feature loss, relative to the losses of outputs and labels.")
    ] = 1.0
    logits: Annotated[
        Literal["standardized", "kd"],
        Field(description="Loss on class logits: as in `method` standardized or kd."),
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
            [*notes, f"trained on {len(pairs)} layer pairs: {', '.join(f'{a} from {b}' for a, b in pairs)}"],
        )


class DistillFeatures(_BetweenLayers):
    """Masked generative distillation (MGD): generate the teacher's features from masked student features. For images.

    The generator is trained with the student and discarded. Outputs and labels are part of the loss too.
    """

    method: ClassVar[str] = "features"

    hidden: Annotated[float, Field(ge=0, lt=1, description="Fraction of feature positions that are masked.")] = 0.5

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        return self._lesson(pupil, teacher, self.hidden)


class DistillLayers(_BetweenLayers):
    """Match the teacher's hidden states or feature maps layer by layer, at the same relative depth.

    Where widths differ, a projection is trained with the student and discarded. Outputs and labels are part of the loss
    too.
    """

    method: ClassVar[str] = "layers"
    searched: ClassVar = Searched(
        ("text",), {"batch_size": 32, "lr": 0.0005}, preview={"epochs": 1, "train_samples": 2000}
    )

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        return self._lesson(pupil, teacher, None)
