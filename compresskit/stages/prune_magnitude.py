"""``prune.magnitude``: the smallest weights become zero."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.shared_sparse import Sparse


class PruneMagnitude(Sparse):
    """Set the smallest weights to zero, without data.

    Shapes do not change, so this alone gives neither a speed-up nor a smaller file. `scope` output is often better for
    transformers. With data, sparsegpt is much more accurate.
    """

    method: ClassVar[str] = "magnitude"

    scope: Annotated[
        Literal["layer", "output", "global"],
        Field(description="Scope of the ranking: the weights of one layer, of one output, or of all layers."),
    ] = "layer"

    @field_validator("scope")
    @classmethod
    def _of_layers(cls, value: str, info: ValidationInfo) -> str:
        if value != "layer" and info.data.get("pattern") is not None:
            raise ValueError("layer: with `pattern` every group loses the same number of weights")
        return value

    def run(self, model: Model, ctx: Context) -> Model:
        """Prune a module in place.

        Raises:
            UsageError: A glob matches nothing.
            InputError: A weight holds NaN or Inf, or there is no layer that could be pruned.
        """
        from compresskit.ops.prune.unstructured import prune_free

        _, plan, teacher = self.settle(model, self.zeros())
        prune_free(plan.layers, self.zeros(), scope=self.scope, progress=ctx.progress)
        return self.finish(model, ctx, plan, teacher)
