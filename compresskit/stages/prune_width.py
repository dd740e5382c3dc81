"""``prune.width``: neurons and attention heads of a transformer go, equally many from each layer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from compresskit.errors import UsageError
from compresskit.facts.prune import WidthFacts
from compresskit.kinds import PRUNE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration
from compresskit.stages.fields import Drift, Samples
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from compresskit.ops.prune.width import Part

_BATCH = 32
_MULTIPLE = 8


class PruneWidth(Recovery):
    """Remove feed-forward neurons and attention heads of a Hugging Face folder. transformers still loads the result.

    Each layer loses the same number: those with the smallest error on `data` after a refit. `epochs` trains the rest on
    `data` with the unpruned model as the teacher. For other models use `method` structured.
    """

    kind: ClassVar = PRUNE
    method: ClassVar[str] = "width"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = WidthFacts
    needs: ClassVar = ("calibration",)
    needs_no_replay: ClassVar[bool] = True  # config.json tells the sizes

    neurons: Annotated[
        float, Field(ge=0, lt=1, description="Fraction of the feed-forward neurons of each layer to remove.")
    ] = 0.25
    heads: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Fraction of the attention heads to remove; heads that share keys and values "
            "are removed together.",
        ),
    ] = 0.0
    samples: Samples = 256
    drift: Drift = 1.0

    def check_options(self) -> None:
        """Refuse shares that cut nothing.

        Raises:
            UsageError: Both are 0.
        """
        if not self.neurons and not self.heads:
            raise UsageError("`neurons` 0 and `heads` 0 leave nothing to prune")

    def run(self, model: Model, ctx: Context) -> Model:
        """Cut a module in place.

        Raises:
            UsageError: There are no calibration data, or the model isn't of transformers.
            InputError: The data don't fit the model, or it has no such neurons or heads.
        """
        from compresskit.ops.prune.config import check_config, with_sizes
        from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d
        from compresskit.ops.prune.width import heads, heads_left, neurons, prune_width
        from compresskit.stages.batches import batches_of, forward_of

        if ctx.data is None:
            raise UsageError("prune `method` width needs calibration data", "give `data` FILE")
        self.check_options()
        if model.card.arch.kind != "transformers":
            raise UsageError("prune `method` width is for Hugging Face folders", "`method` structured takes any module")
        module, forward = model.module.eval(), forward_of(model.module, model.card.inputs)
        count, name = min(self.samples, len(ctx.data)), portable(ctx.data.name)
        batches = batches_of(ctx.data, model.card.inputs, _BATCH, count)
        teacher = copy.deepcopy(module) if self.epochs else None
        turned = conv1d_to_linear(module)
        parts: list[tuple[Part, int]] = []
        sizes: dict[str, int] = {}
        if self.neurons:
            key, found = neurons(module, batches[0], forward)
            sizes[key] = _rounded(found[0].units, self.neurons)
            parts += [(part, sizes[key]) for part in found]
        if self.heads:
            found = heads(module, batches[0], forward)
            changes = heads_left(module.config, self.heads)
            sizes |= changes
            parts += [(part, changes["num_key_value_heads"]) for part in found]
        prune_width(module, parts, batches, forward, drift=self.drift, progress=ctx.progress)
        linear_to_conv1d(module, turned)
        facts: dict[str, Any] = {
            "config": with_sizes(module, sizes),
            "layers": {part.reader: {"about": f"with {keep} of {part.units} units"} for part, keep in parts},
            "calibration": calibration(ctx.data, count),
        }
        check_config(module, lambda target: forward(target, batches[0]))
        trained = self.train(module, model.card, ctx, teacher=teacher)
        told = ", ".join(f"{key} {value}" for key, value in facts["config"].items())
        facts["notes"] = [
            f"calibrated on {count} sample{'s' if count > 1 else ''} of {name}",
            f"config.json now contains: {told}",
            *trained.pop("notes", []),
        ]
        return self.recorded(model, {**facts, **trained})


def _rounded(units: int, ratio: float) -> int:
    """How many of some neurons stay: a multiple of 8, which kernels like, never none."""
    step = _MULTIPLE if units % _MULTIPLE == 0 else 1
    return max(step, round(units * (1 - ratio) / step) * step)
