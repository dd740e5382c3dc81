"""What all methods share that set single weights to zero: options, the run over the data, and what is said of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from compresskit.errors import UsageError, listing
from compresskit.facts.prune import SparseFacts
from compresskit.kinds import PRUNE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration
from compresskit.stages.fields import Exclude, Include, Samples
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from torch import nn

    from compresskit.ops.prune.masks import Pattern
    from compresskit.ops.prune.unstructured import Calibrated, Layers

_SPARSITY = 0.5
_MOST = 32
_BATCH = 32


class Sparse(Recovery):
    """Single weights become zero; shapes and files stay as they are."""

    kind: ClassVar = PRUNE
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = SparseFacts
    needs_no_replay: ClassVar[bool] = True

    sparsity: Annotated[
        float | None, Field(ge=0, lt=1, description="Sparsity: fraction of each layer's weights to set to zero. (0.5)")
    ] = None
    pattern: Annotated[
        str | None,
        Field(description="N:M sparsity: keeps N weights in each group of M inputs. NVIDIA GPUs accelerate 2:4."),
    ] = None
    include: Include = ()
    exclude: Exclude = ()

    @property
    def promises_speed(self) -> bool:
        """Kernels compute zeros as other numbers."""
        return False

    @field_validator("pattern")
    @classmethod
    def _groups(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        kept, _, of = value.partition(":")
        numbers = all(part.isascii() and part.isdigit() for part in (kept, of))
        if not numbers or not 1 <= int(kept) < int(of) <= _MOST:
            raise ValueError(f"N:M with 1 ≤ N < M ≤ {_MOST}, as 2:4")
        if info.data.get("sparsity") is not None:
            raise ValueError("no `sparsity` with it: N:M fixes the number of remaining weights")
        return value

    def zeros(self) -> Pattern:
        """The options as the algorithms take them."""
        from compresskit.ops.prune.masks import Pattern

        if self.pattern is None:
            return Pattern(_SPARSITY if self.sparsity is None else self.sparsity)
        kept, _, of = self.pattern.partition(":")
        return Pattern.grouped(int(kept), int(of))

    def settle(self, model: Model, pattern: Pattern) -> tuple[nn.Module, Layers, nn.Module | None]:
        """The module, the layers to prune, and a copy of it to learn from where training follows.

        Raises:
            UsageError: A glob matches nothing.
            InputError: There is no layer that could be pruned.
        """
        from compresskit.ops.prune.unstructured import plan_layers

        module = model.module.eval()
        plan = plan_layers(module, pattern, self.include, self.exclude)
        return module, plan, copy.deepcopy(module) if self.epochs else None

    def finish(
        self,
        model: Model,
        ctx: Context,
        plan: Layers,
        teacher: nn.Module | None,
        notes: Sequence[str] = (),
        **more: Any,
    ) -> Model:
        """Train where that was asked for, count the zeros, and write the card.

        Args:
            model: Pruned in place.
            ctx: With data to train on.
            plan: The layers that were pruned, and the others.
            teacher: The module before.
            notes: What else is to be said.
            more: What else is recorded.

        Raises:
            UsageError: There are no data to train on.
            InputError: The data don't fit, or training diverged.
        """
        from compresskit.ops.prune.masks import keep_zeros
        from compresskit.ops.prune.unstructured import facts_of

        trained = self.train(model.module, model.card, ctx, teacher=teacher, after_step=keep_zeros(plan.layers))
        facts = {**facts_of(plan.layers), **more, **trained}
        facts["notes"] = [*_of_zeros(facts, plan.layers, self.zeros()), *notes, *trained.get("notes", ())]
        return self.recorded(model, facts, plan.skipped)


class CalibratedSparse(Sparse):
    """Methods that look at what the layers take in."""

    needs: ClassVar = ("calibration",)

    samples: Samples = 256

    def prune(self, model: Model, ctx: Context, method: Calibrated) -> Model:
        """Prune a module in place with the context's data.

        Args:
            model: Its body is a module.
            ctx: With data.
            method: For one layer.

        Raises:
            UsageError: There are no data, or a glob matches nothing.
            InputError: The data don't fit the model.
        """
        from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d
        from compresskit.ops.prune.unstructured import prune_calibrated, reasons
        from compresskit.stages.batches import batches_of, forward_of

        if ctx.data is None:
            raise UsageError(f"prune `method` {self.method} needs calibration data", "without: `method` magnitude")
        pattern = self.zeros()
        module, plan, teacher = self.settle(model, pattern)
        count, name = min(self.samples, len(ctx.data)), portable(ctx.data.name)
        notes = [f"calibrated on {count} sample{'s' if count > 1 else ''} of {name}"]
        if pattern.sparsity > 0:
            batches = batches_of(ctx.data, model.card.inputs, _BATCH, count)
            turned = conv1d_to_linear(module, list(plan.layers))
            layers = {n: module.get_submodule(n) for n in plan.layers}
            forward = forward_of(module, model.card.inputs)
            left = prune_calibrated(module, layers, pattern, method, batches, forward, ctx.progress)
            notes += [f"pruned by magnitude because {why}: {listing(n)}" for why, n in reasons(left, layers).items()]
            linear_to_conv1d(module, turned)
            plan = replace(plan, layers={n: module.get_submodule(n) for n in layers})
        return self.finish(model, ctx, plan, teacher, notes, calibration=calibration(ctx.data, count))


def _of_zeros(facts: dict[str, Any], layers: dict[str, nn.Module], pattern: Pattern) -> list[str]:
    """What zeros are worth, plainly."""
    if not facts["zeros"]:
        return ["no weight was set to zero"]
    dense = sum(layer.get_parameter("weight").nbytes for layer in layers.values())
    share = facts["zeros"] / facts["of"]
    packed = dense * (1 - share) + facts["of"] / 8
    notes = [
        f"{100 * share:.1f} % of the weights of {len(layers)} layers are zero; this gives no speed-up: dense "
        "kernels multiply zeros like other weights",
        "the files are not smaller: zeros are stored like other weights; as bit mask and values these layers would "
        f"take {packed / 1e6:.3g} MB in place of {dense / 1e6:.3g} MB",
    ]
    if (pattern.kept, pattern.of) == (2, 4):
        notes.append(
            "2:4 is faster in kernels made for it, on NVIDIA GPUs from Ampere on: none of the runtimes here has them"
        )
    return notes
