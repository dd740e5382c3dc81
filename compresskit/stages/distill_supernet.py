"""``distill.supernet``: one training, after which parts of a model work alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compresskit.facts import to_json
from compresskit.facts.supernet import ElasticFacts
from compresskit.stages.distill_base import Distill, DistillFacts, Lesson, Pupil

if TYPE_CHECKING:
    from compresskit.ops.distill.teacher import Stand

_SAMPLES = 512
"""That channels and blocks are ranked by."""


@dataclass(frozen=True, kw_only=True)
class SupernetFacts(DistillFacts):
    """Of a supernet.

    Attributes:
        elastic: What may be left out of it.
    """

    elastic: ElasticFacts


class DistillSupernet(Distill):
    """Train a supernet: `prune --method subnet` then extracts any width and depth from it without training.

    Each step trains the full model, the smallest subnet and two random subnets. The teacher is the original MODEL
    unless another one is given. The result has the size of MODEL. Width varies over channels and depth over residual
    blocks; for a Hugging Face folder over feed-forward neurons, layers and, with `heads`, attention heads.
    """

    method: ClassVar[str] = "supernet"
    facts: ClassVar = SupernetFacts

    min_width: Annotated[
        float, Field(gt=0, le=1, description="Width of the narrowest subnet, as a fraction of channels or neurons.")
    ] = 0.25
    min_depth: Annotated[int | None, Field(ge=1, description="Number of blocks of the shallowest subnet. (half)")] = (
        None
    )
    subnets: Annotated[
        int,
        Field(
            ge=0, le=16, description="Random subnets per step, in addition to the full model and the smallest subnet."
        ),
    ] = 2
    heads: Annotated[
        bool,
        Field(
            description="Also vary attention heads of a Hugging Face model. transformers alone cannot load such "
            "subnets."
        ),
    ] = False
    round_to: Annotated[
        int, Field(ge=1, le=256, description="Widths are multiples of this number, because kernels are slow on others.")
    ] = 8
    temperature: Annotated[float, Field(gt=0, description="Temperature of both models' logits.")] = 4.0

    def check_options(self) -> None:
        """Accept no teacher: MODEL is its own."""

    def lesson(self, pupil: Pupil, teacher: Stand) -> Lesson:
        """See :meth:`Distill.lesson`."""
        from compresskit.ops.packed.modules import set_module
        from compresskit.ops.prune.elastic import ElasticSettings, elastic
        from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d, rewrite_shortcuts
        from compresskit.train.sandwich import sandwiched
        from compresskit.train.teaching import by_classes

        module, data = pupil.module, pupil.data(_SAMPLES)
        turned = conv1d_to_linear(module)
        before, own = dict(module.named_modules()), set(map(id, module.parameters()))
        rewritten = rewrite_shortcuts(module, data.run)
        for parameter in module.parameters():
            if id(parameter) not in own:
                parameter.requires_grad_(False)  # a shortcut, which is to be the model's own again at the end
        settings = ElasticSettings(
            self.round_to, self.min_depth, transformer=pupil.transformer, heads=self.heads
        )  # fmt: skip
        parts = elastic(module, data, settings, pupil.progress)
        distance, notes = by_classes(pupil.classes, self.temperature, standardize=False)
        asked = self._asked_once(pupil, teacher)

        def settle() -> None:
            for name in rewritten:
                set_module(module, name, before[name])
            linear_to_conv1d(module, turned)

        channels = f"{len(parts.ranked)} groups of channels from {self.min_width:g} of their width on"
        blocks = f"up to {len(parts.blocks)} blocks: {', '.join(parts.gone(len(parts.blocks)))}"
        varied = [text for text, known in ((channels, parts.ranked), (blocks, parts.blocks)) if known]
        return Lesson(
            module,
            asked,
            lambda task: sandwiched(task, asked, distance, parts, self.min_width, self.subnets),
            {"elastic": to_json(parts.facts(self.min_width))},
            [
                *notes,
                f"trained with varying width and depth: {'; '.join(varied)}; extract a subnet with prune "
                "`method` subnet",
            ],
            settle,
        )
