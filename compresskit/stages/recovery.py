"""Training that brings back what a stage has cost: of all weights, or of low-rank terms beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from compresskit.errors import UsageError
from compresskit.model import Card
from compresskit.stage import Context
from compresskit.stages.training import TrainingOptions

if TYPE_CHECKING:
    from torch import nn

    from compresskit.train.settings import Optimizing

LOW_RANK_RATES = {"sgd": 1e-2, "adamw": 1e-3}
"""Learning rates of low-rank terms where none is given."""


class Recovery(TrainingOptions):
    """Training after a stage that has changed weights."""

    recover: Annotated[
        Literal["weights", "lora"],
        Field(
            description="Trained parameters: all weights, or low-rank terms (lora) that are merged at the end "
            "(adamw, lr 1e-3). lora needs less memory and overfits less on few samples."
        ),
    ] = "weights"
    recover_rank: Annotated[int, Field(ge=1, le=1024, description="Rank of the low-rank terms of `recover` lora.")] = 16

    @model_validator(mode="after")
    def _recovers(self) -> Recovery:
        if self.recover == "lora" and not self.epochs:
            raise UsageError("`recover` is for training, and `epochs` is 0", "give `epochs` N")
        if self.recover == "lora" and self.optimizer == "muon":
            raise UsageError(
                "`optimizer` muon needs whole matrices, `recover` lora trains low-rank terms",
                "remove one of the two",
            )
        if self.recover != "lora" and self.recover_rank != Recovery.model_fields["recover_rank"].default:
            raise UsageError("`recover_rank` is for `recover` lora", "give both")
        return self

    def train(self, module: nn.Module, card: Card, ctx: Context, **how: Any) -> dict[str, Any]:
        """See :meth:`TrainingOptions.train`; low-rank terms leave zeros as they are, without ``after_step``."""
        if self.recover != "lora" or not self.epochs:
            return super().train(module, card, ctx, **how)
        from compresskit.train.low_rank import low_rank_terms

        with low_rank_terms(module, self.recover_rank, ctx.seed) as names:
            told = super().train(module, card, ctx, **{**how, "after_step": None})
            moved = sum(p.numel() for p in module.parameters() if p.requires_grad)
        told["notes"].append(
            f"only low-rank terms were trained, of rank {self.recover_rank} in {len(names)} layers, {moved:,} numbers; "
            "they are folded into the weights"
        )
        return told

    def _optimizing(self, module: nn.Module) -> Optimizing:
        return self.moving("adamw", LOW_RANK_RATES) if self.recover == "lora" else super()._optimizing(module)
