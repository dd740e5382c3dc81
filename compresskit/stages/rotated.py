"""The option that rotates a decoder's weights before they are rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compresskit.errors import GateError
from compresskit.facts import to_json
from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.fields import Rotate
from compresskit.stages.weight_only import WeightOnly

if TYPE_CHECKING:
    from torch import nn

    from compresskit.facts.quantize import RotationFacts
    from compresskit.ops.quantize.calibrated import Method

_TRIED = 2
"""Samples of random tokens on which a rotated model is compared with the original."""
_SAME = 1e-3
"""How far its outputs may be, relative; rounding in float32 gives 1e-6."""


class Rotated(WeightOnly):
    """Methods that may rotate weights first."""

    rotate: Rotate = False

    def calibrate(self, model: Model, ctx: Context, method: Method, **how: Any) -> Model:
        """See :meth:`WeightOnly.calibrate`; weights are rotated before."""
        model, about = self.rotated(model, ctx)
        return told(super().calibrate(model, ctx, method, **how), about)

    def rotated(self, model: Model, ctx: Context) -> tuple[Model, RotationFacts | None]:
        """Rotate a module in place, or each of its weights when it is read from disk.

        Args:
            model: Its body is a module.
            ctx: Its seed decides on the rotation.

        Returns:
            The model, and what :func:`told` is to be given once it is quantized; None where no rotation was asked for.

        Raises:
            UsageError: The model can't be rotated.
            GateError: It computes something else afterwards.
        """
        if not self.rotate:
            return model, None
        from compresskit.ops.quantize.rotate import RotatedTensors, plan_rotation, rotate, untie

        plan = plan_rotation(model.module, ctx.seed)
        if model.weights is not None:
            untie(model.module, plan.facts)
            return replace(model, weights=RotatedTensors(model.weights, plan)), plan.facts
        before = _outputs(model, ctx.seed)
        rotate(model.module, plan)
        off = float((_outputs(model, ctx.seed) - before).norm() / before.norm())
        if not off <= _SAME:
            raise GateError(
                f"the rotated model's outputs are {off:.2g} relative from the original's", "leave `rotate` out"
            )
        return model, plan.facts


def told(model: Model, rotation: RotationFacts | None) -> Model:
    """A quantized model whose card tells of the rotation, and a user of what it costs.

    Args:
        model: As it was recorded.
        rotation: None where there was none.
    """
    if rotation is None:
        return model
    *before, last = model.card.history
    shape = f"{rotation.size} columns, {rotation.head} in each head's values"
    notes = [f"weights were rotated by a random {_NAMES[rotation.kind]} matrix ({shape}, seed {rotation.seed})"]
    config = {}
    if rotation.untied is not None:
        size = _bytes_of(model.module.get_submodule(rotation.untied))
        notes.append(f"'{rotation.untied}' no longer shares the weight of the embeddings: {size:,} bytes more")
        config = {"config": {"tie_word_embeddings": False}}
    facts = {**last.facts, "rotation": to_json(rotation), **config, "notes": [*last.facts.get("notes", []), *notes]}
    return replace(model, card=replace(model.card, history=(*before, replace(last, facts=facts))))


_NAMES = {"hadamard": "Hadamard", "orthogonal": "orthogonal"}


def _bytes_of(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in layer.state_dict().values())


def _outputs(model: Model, seed: int) -> Any:
    import torch

    from compresskit.ops.calibration.trace import tensors_in
    from compresskit.stages.batches import forward_of, made_up

    module, inputs = model.module.eval(), model.card.inputs
    with torch.inference_mode():
        return next(tensors_in(forward_of(module, inputs)(module, made_up(inputs, _TRIED, seed))))
