"""Training that brings back what a stage has cost: of all weights, or of low-rank terms beside them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from compresskit.errors import InputError, UsageError, listing
from compresskit.model import Card
from compresskit.stage import Context
from compresskit.stages.training import TrainingOptions

if TYPE_CHECKING:
    from torch import nn

    from compresskit.train.plan import Optimizing

LOW_RANK_RATES = {"sgd": 1e-2, "adamw": 1e-3}
"""Learning rates of low-rank terms where none is given."""
_LOOK = 2
"""Samples that show what blocks there are, and what they give."""


class Recovery(TrainingOptions):
    """Training after a stage that has changed weights."""

    recover: Annotated[
        Literal["weights", "lora"],
        Field(
            description="What training moves: all weights, or low-rank terms that are folded into them at the end "
            "(adamw, lr 1e-3): less memory, and less is forgotten where --data is little."
        ),
    ] = "weights"
    recover_rank: Annotated[int, Field(ge=1, le=1024, description="Rank of the terms of --recover lora.")] = 16
    layer_weight: Annotated[
        float,
        Field(
            ge=0,
            description="Of the distance between what blocks give and what the original's do, beside that of outputs; "
            "0: learn from outputs alone.",
        ),
    ] = 0.0

    @model_validator(mode="after")
    def _recovers(self) -> Recovery:
        if self.recover == "lora" and not self.epochs:
            raise UsageError("--recover is for training, and --epochs is 0", "give --epochs N")
        if self.recover != "lora" and self.recover_rank != Recovery.model_fields["recover_rank"].default:
            raise UsageError("--recover-rank is for --recover lora", "give both")
        if self.layer_weight and not self.epochs:
            raise UsageError("--layer-weight is for training, and --epochs is 0", "give --epochs N")
        if self.layer_weight and not self.teacher_share:
            raise UsageError("--layer-weight is of what the original teaches, and --teacher-share is 0", "raise it")
        return self

    def train(
        self, module: nn.Module, card: Card, ctx: Context, *, origins: Mapping[str, str] | None = None, **how: Any
    ) -> dict[str, Any]:
        """See :meth:`TrainingOptions.train`; low-rank terms leave zeros as they are, without ``after_step``.

        Args:
            module: As there.
            card: As there.
            ctx: As there.
            origins: The module's blocks, each with its name in the teacher, where names differ.
            how: As there.
        """
        if self.recover != "lora" or not self.epochs:
            return self._train(module, card, ctx, origins, how)
        from compresskit.train.low_rank import low_rank_terms

        with low_rank_terms(module, self.recover_rank, ctx.seed) as names:
            told = self._train(module, card, ctx, origins, {**how, "after_step": None})
            moved = sum(p.numel() for p in module.parameters() if p.requires_grad)
        told["notes"].append(
            f"only low-rank terms were trained, of rank {self.recover_rank} in {len(names)} layers, {moved:,} numbers; "
            "they are folded into the weights"
        )
        return told

    def _train(
        self, module: nn.Module, card: Card, ctx: Context, origins: Mapping[str, str] | None, how: dict[str, Any]
    ) -> dict[str, Any]:
        """Train against the teacher's outputs, and against what its blocks give where that has a weight."""
        if not self.layer_weight or not self.epochs:
            return super().train(module, card, ctx, **how)
        from compresskit.train.task import Task
        from compresskit.train.teaching import guided

        student, stand, pairs = _looked_into(module, how["teacher"], card, ctx, origins)
        loss = partial(guided, teacher=stand, distance=Task.against_teacher, weight=self.layer_weight)
        told = super().train(student, card, ctx, **{**how, "teacher": stand, "loss": loss})
        told["training"]["pairs"] = pairs
        told["notes"].append(f"learnt from {len(pairs)} blocks of the original too: {listing(list(pairs), 12)}")
        return told

    def _optimizing(self, module: nn.Module) -> Optimizing:
        return self.moving("adamw", LOW_RANK_RATES) if self.recover == "lora" else super()._optimizing(module)


def _looked_into(
    module: nn.Module, original: nn.Module, card: Card, ctx: Context, origins: Mapping[str, str] | None
) -> tuple[nn.Module, nn.Module, dict[str, str]]:
    """A module and its original, both giving what their blocks do beside their outputs, and the names of these."""
    import torch

    from compresskit.ops.distill.teacher import Stand
    from compresskit.stages.batches import batches_of, forward_of
    from compresskit.train.teaching import joined

    if ctx.data is None:
        raise UsageError("--epochs needs training data", "give --data FILE")
    call, inputs = forward_of(module, card.inputs), batches_of(ctx.data, card.inputs, _LOOK, _LOOK)[0]
    stand = Stand(original, call, list(inputs), {name: name for name in inputs})
    torch.manual_seed(ctx.seed)  # blocks of other widths are held against each other through a layer of its own
    try:
        student, tapped, pairs = joined(
            module.eval(), stand, lambda target: call(target, inputs), (), origins=origins or {}
        )
    except InputError as error:
        raise InputError(error.message, "leave --layer-weight out") from error
    return student, tapped, dict(pairs)
