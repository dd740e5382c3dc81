"""``distill.gkd``: a language model learns from what its teacher says of the texts that it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compresskit.errors import InputError, UsageError
from compresskit.stages.distill_base import Distill, Lesson, Pupil

if TYPE_CHECKING:
    from compresskit.ops.distill.teacher import Stand

_KNOWN = {"input_ids", "attention_mask"}


class DistillGkd(Distill):
    """Let the student write, and learn what the teacher would have said at each word. For causal language models.

    Texts of `data` give the beginnings, and are learnt from as well. Writing takes most of the time: `new_tokens` and
    `on_policy` say how much of it there is.
    """

    method: ClassVar[str] = "gkd"

    on_policy: Annotated[
        float, Field(ge=0, le=1, description="Share of the steps that are on texts the student writes.")
    ] = 0.5
    prompt: Annotated[int, Field(ge=1, description="Tokens of `data` that each of its texts begins with.")] = 16
    new_tokens: Annotated[int, Field(ge=1, description="Tokens that the student writes.")] = 64
    beta: Annotated[
        float,
        Field(ge=0, le=1, description="Divergence: 0 covers all that the teacher says, 1 avoids what it wouldn't."),
    ] = 0.5
    temperature: Annotated[float, Field(gt=0, description="Of the student when it writes.")] = 1.0
    teacher_share: Annotated[
        float, Field(ge=0, le=1, description="Of the loss on `data`; the rest comes from the texts' own tokens.")
    ] = 1.0

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        from compresskit.train.writing import Writing

        if pupil.task != "causal-lm" or not set(pupil.inputs) <= _KNOWN or "input_ids" not in pupil.inputs:
            raise InputError(
                f"gkd is for causal language models that take {' and '.join(sorted(_KNOWN, reverse=True))}; "
                f"the student takes {', '.join(pupil.inputs)}",
                "take `method` standardized or layers",
            )
        config = getattr(pupil.module, "config", None)
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and self.prompt + self.new_tokens > most:
            raise UsageError(
                f"`prompt` {self.prompt} and `new_tokens` {self.new_tokens} are more than the model's {most} positions"
            )
        end = getattr(config, "eos_token_id", None)
        writing = Writing(
            self.on_policy, self.prompt, self.new_tokens, self.temperature, self.beta,
            (end,) if isinstance(end, int) else tuple(end or ()),
        )  # fmt: skip
        return Lesson(pupil.module, teacher, lambda task: writing.loss(task, teacher))
