"""A low-rank term beside each rounded weight: made by the rounding, and trained where that is asked for."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.recovery import LOW_RANK_RATES
from compresskit.stages.rotated import Rotated, told
from compresskit.stages.streaming import quantized
from compresskit.stages.training import TrainingOptions
from compresskit.stages.weight_only import SAMPLES

if TYPE_CHECKING:
    from torch import nn

    from compresskit.ops.quantize.calibrated import Calibrated, DataFree, Method
    from compresskit.train.settings import Optimizing

_TRAINED_RANK = 16


class Repaired(TrainingOptions, Rotated):
    """Methods whose layers may hold a low-rank term beside their codes."""

    learns_tokens: ClassVar[bool] = False  # rounding is to change nothing: the model itself is the better teacher
    measures: ClassVar[bool] = False

    repair: Annotated[
        int,
        Field(
            ge=0,
            le=256,
            description="Rank of a float16 correction beside each Linear layer that compensates rounding; best with "
            f"`data`. (with `epochs`: {_TRAINED_RANK}, else 0)",
        ),
    ] = 0
    optimizer: Annotated[Literal["sgd", "adamw"] | None, Field(description="Optimizer of training. (adamw)")] = None
    recover: Annotated[
        Literal["lora"] | None,
        Field(description="Trained parameters: the low-rank corrections of `repair`; the codes do not change. (lora)"),
    ] = None

    @model_validator(mode="after")
    def _recovers(self) -> Repaired:
        if self.recover and not self.epochs:
            raise UsageError("`recover` is for training, and `epochs` is 0", "give `epochs` N")
        return self

    @property
    def rank(self) -> int:
        """Of the terms; 0 for none."""
        return self.repair or (_TRAINED_RANK if self.epochs else 0)

    def splits(self, *, data: bool, limited: bool) -> bool:
        """Layer by layer; training splits batches."""
        return not self.epochs

    def reads(self, *, data: bool, limited: bool) -> Literal["all", "mapped", "streamed"]:
        """One by one without terms."""
        return "all" if self.rank else "streamed"

    def calibrate(self, model: Model, ctx: Context, method: Method, **how: Any) -> Model:
        """See :meth:`Rotated.calibrate`; the terms are trained then, against the model before."""
        self.check_training_data(ctx)
        teacher = copy.deepcopy(model.module) if self.epochs else None
        method = replace(method, repair=self.rank)
        model = super().calibrate(model, ctx, method, **how)
        return model if teacher is None else self._trained(model, teacher, ctx)

    def _trained(self, model: Model, teacher: nn.Module, ctx: Context) -> Model:
        from compresskit.train.low_rank import trainable_repairs

        with trainable_repairs(model.module) as names:
            told = self.train(model.module, model.card, ctx, teacher=teacher)
        *before, last = model.card.history
        # The terms make up for the output now, no longer for their own weight.
        layers = {
            name: {k: v for k, v in data.items() if k != "sqnr"} if name in names else data
            for name, data in last.facts["layers"].items()
        }
        notes = [
            *last.facts["notes"],
            *told["notes"],
            f"low-rank corrections of rank {self.rank} were trained; the codes did not change",
        ]
        facts = {**last.facts, "layers": layers, "training": told["training"], "notes": notes}
        return self.recorded(replace(model, card=replace(model.card, history=tuple(before))), facts, last.skipped)

    def _optimizing(self, module: nn.Module) -> Optimizing:
        return self.moving("adamw", LOW_RANK_RATES)

    def round_free(self, model: Model, ctx: Context, free: DataFree, calibrated: Calibrated) -> Model:
        """Quantize a module in place by an algorithm that needs no data; a repair takes data into account.

        Args:
            model: Its body is a module.
            ctx: Its data are used for the repair only.
            free: The algorithm.
            calibrated: The same, as one that ignores its data.
        """
        from compresskit.ops.quantize.calibrated import Method

        if self.rank:
            return self.calibrate(model, ctx, Method(calibrated, free), samples=SAMPLES, embedding_group=False)
        model, about = self.rotated(model, ctx)
        model, facts, skipped = quantized(self, model, ctx, self.selection(), free)
        return told(self.recorded(model, facts, skipped), about)
