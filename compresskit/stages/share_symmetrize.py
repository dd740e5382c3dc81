"""``share.symmetrize``: a model whose output doesn't depend on how its picture is flipped or turned."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import InputError, UsageError
from compresskit.facts import to_json
from compresskit.facts.share import MovedFacts, SymmetrizeFacts
from compresskit.kinds import SHARE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Samples
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.share.moves import Move
    from compresskit.ops.shrinking import CalibrationData

_BATCH, _ROWS = 32, 8
_SYMMETRIC = 1e-5
"""Relative change of the output up to which a model is symmetric already."""


class ShareSymmetrize(Recovery):
    """Make the output of an image model independent of flips or turns of its image (an output image moves with it).

    `form` average runs the model on all moved images and averages the outputs. It takes as many times longer as there
    are moves, and works for all models. `form` tie makes the kernels symmetric at no cost in time or size, but the
    model must be trained again: `epochs` trains the result against the original.
    """

    kind: ClassVar = SHARE
    method: ClassVar[str] = "symmetrize"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = SymmetrizeFacts

    group: Annotated[
        Literal["flip", "c2", "d2", "c4", "d4"],
        Field(
            description="The moves: left-right flip (flip), half turn (c2), both flips and the half turn (d2), quarter "
            "turns (c4), quarter turns and flips (d4)."
        ),
    ] = "c4"
    form: Annotated[
        Literal["average", "tie"],
        Field(
            description="Average the outputs for all moved images (exact, slower), or make kernels symmetric (as fast "
            "as before, needs training)."
        ),
    ] = "average"
    samples: Samples = 256

    @model_validator(mode="after")
    def _stays_symmetric(self) -> ShareSymmetrize:
        if self.form == "tie" and self.recover == "lora":
            raise UsageError("`recover` lora trains terms that are not symmetric", "`recover` weights keeps `form` tie")
        return self

    @property
    def label(self) -> str:
        """The moves."""
        return self.group

    @property
    def promises_speed(self) -> bool:
        """No: it takes as long as before, or longer."""
        return False

    @property
    def may_slow(self) -> bool:
        """Whether outputs are averaged."""
        return self.form == "average"

    @property
    def promises_size(self) -> bool:
        """Not where outputs are averaged: the file has further operators."""
        return self.form == "tie"

    def run(self, model: Model, ctx: Context) -> Model:
        """Make a module symmetric in place.

        Raises:
            UsageError: There are epochs without data.
            InputError: It takes no picture, the moves don't fit it, or it is symmetric already.
        """
        from compresskit.ops.share.moves import GROUPS
        from compresskit.ops.structure.symmetry import symmetry

        self.check_training_data(ctx)
        module, moves = model.module.eval(), GROUPS[self.group]
        data = calibration_data(model, ctx, samples=self.samples, size=_BATCH, rows=_ROWS)
        data = replace(data, batches=data.batches or [data.example])
        self._check(model, data, moves)
        measured = partial(symmetry, module, data, len(data.batches), moves[1:])
        before = measured()
        if all(row["error"] <= _SYMMETRIC for row in before):
            worst = max(row["error"] for row in before)
            raise InputError(f"the output changes by {worst:.1g} at most under {self.group} already", "nothing to do")
        original = copy.deepcopy(module) if self.epochs else None
        layers, trained = self._symmetrized(model, ctx, data, original)
        rows = [
            MovedFacts(
                move=one["move"], before=one["error"], after=two["error"], same_before=one.get("same"),
                same_after=two.get("same"),
            )
            for one, two in zip(before, measured(), strict=True)
        ]  # fmt: skip
        on = "random images"
        facts = {
            "layers": layers, "group": self.group, "form": self.form, "moves": [to_json(row) for row in rows]
        }  # fmt: skip
        if ctx.data is not None:
            on = f"{min(self.samples, len(ctx.data))} samples of {portable(ctx.data.name)}"
            facts["calibration"] = calibration(ctx.data, self.samples)
        notes = [self._cost(len(moves), layers), *(_about(row, on) for row in rows), *trained.pop("notes", [])]
        return self.recorded(model, {**facts, **trained, "notes": notes})

    def _check(self, model: Model, data: CalibrationData, moves: tuple[Move, ...]) -> None:
        """Refuse what can't be made symmetric, before anything is changed."""
        from compresskit.ops.calibration.trace import tensors_in
        from compresskit.ops.macs import calling
        from compresskit.ops.share.averaged import refused

        given = {name: tuple(tensor.shape) for name, tensor in data.example.items()}
        x = next(tensors_in(data.example))
        if len(given) > 1 or x.dim() != 4 or not x.is_floating_point():
            shown = ", ".join(f"{name} {list(shape)}" for name, shape in given.items())
            raise InputError(f"flips and turns are for models that take one image, this one takes {shown}")
        square = any(move.transposed for move in moves)
        free = any(isinstance(size, str) for spec in model.card.inputs for size in spec.shape[2:])
        if square and (free or x.shape[-1] != x.shape[-2]):
            size = "images of any size" if free else f"images of {x.shape[-2]} × {x.shape[-1]}"
            raise InputError(
                f"`group` {self.group} turns images by quarters, which needs square ones: this model takes {size}",
                "`group` flip, c2 and d2 keep the shape",
            )
        with calling(model.module):
            if why := refused(data.run(model.module), len(x), square=square):
                raise InputError(f"this model can't be made symmetric: {why}")

    def _symmetrized(
        self, model: Model, ctx: Context, data: CalibrationData, original: nn.Module | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Change the module, and train it; what was done to layers, and what training tells."""
        from compresskit.ops.share.averaged import attach
        from compresskit.ops.share.kernels import kernels, parting, project
        from compresskit.ops.share.moves import GROUPS

        module, moves = model.module, GROUPS[self.group]
        if self.form == "average":
            attach(module, self.group)
            return {}, self.train(module, model.card, ctx, teacher=original)
        shapes = kernels(module, data)
        turned = any(move.transposed for move in moves)
        flat = next((name for name, shape in shapes.items() if turned and shape[-1] != shape[-2]), None)
        if flat is not None:
            raise InputError(f"'{flat}' has kernels of {_size(shapes[flat])}, which can't be turned", _AVERAGE)
        kept = project(module, shapes, moves)
        if why := parting(module, data, moves[1:]):
            hint = (
                f"{_AVERAGE}; `form` tie needs other sizes (`input_shape`) or strides" if "stride" in why else _AVERAGE
            )
            raise InputError(f"symmetric kernels don't make this model symmetric: {why}", hint)
        trained = self.train(
            module, model.card, ctx, teacher=original, after_step=partial(project, module, shapes, moves)
        )
        layers = {
            name: {"about": f"kernels of {_size(shapes[name])}, {100 * share:.0f} % of their squares stayed"}
            for name, share in kept.items()
        }
        return layers, trained

    def _cost(self, count: int, layers: dict[str, Any]) -> str:
        if self.form == "average":
            return (
                f"the outputs are averaged over the {count} moves of {self.group}: the model computes {count} times as "
                "much for an image; the file is as large as before"
            )
        told = "" if self.epochs else "; no training was done, `epochs` N trains the result"
        return f"{len(layers)} layers have symmetric kernels: as fast and as large as before{told}"

    @classmethod
    def replay(cls, module: nn.Module, facts: SymmetrizeFacts, tensors: Tensors) -> Tensors:
        """Let a freshly built module average its outputs; tied kernels are in the tensors."""
        from compresskit.ops.share.averaged import attach

        if facts.form == "average":
            attach(module, facts.group)
        return tensors


_AVERAGE = "`form` average works for this model"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]}×{shape[-1]}"


def _about(row: MovedFacts, on: str) -> str:
    """What a reader must know of one move."""
    found = f"{row.move}: the output changes by {row.before:.2g} before, {row.after:.2g} after"
    if row.same_before is not None and row.same_after is not None:
        found += f"; the class stays for {100 * row.same_before:.1f} % before, {100 * row.same_after:.1f} % after"
    return f"{found} ({on})"
