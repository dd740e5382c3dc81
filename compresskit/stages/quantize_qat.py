"""``quantize.qat`` (or `qat`): training goes on with rounded weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from compresskit.errors import InputError, UsageError
from compresskit.facts.quantize import QuantizeFacts
from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.shared_int8 import StaticFacts, TargetName
from compresskit.stages.training import TrainingOptions
from compresskit.stages.weight_only import WeightOnly

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.stages.quantize_int8_static import QuantizeInt8Static
    from compresskit.train.loop import Fitted
    from compresskit.train.training_plan import TrainingPlan

_PACKED_ONLY = ("group_size", "symmetric", "include", "exclude", "layer_bits")
_FEW = 2000
"""Samples below which training is likely to overfit."""


class QuantizeQat(TrainingOptions, WeightOnly):
    """QAT: quantization-aware training on `data`. The most accurate method, and the slowest.

    The model before quantization is the teacher, so that labels are optional; with labels both are used. The final
    scales are those of the training: no further rounding follows. Images are cropped and mirrored at random.
    """

    method: ClassVar[str] = "qat"
    needs: ClassVar = ("calibration",)
    learns_tokens: ClassVar[bool] = False  # rounding is to change nothing: the model itself is the better teacher
    measures: ClassVar[bool] = False
    facts: ClassVar[Any] = QuantizeFacts | StaticFacts

    activations: Annotated[
        Literal[8, 16],
        Field(
            description="Bits of activations. 8 needs `bits` 8 and gives a static int8 file; 16 keeps floating point."
        ),
    ] = 16
    target: Annotated[
        TargetName | None,
        Field(description="Target CPU of an int8 file; it decides which integers are signed. (this machine)"),
    ] = None
    epochs: Annotated[int, Field(ge=1, le=10_000, description="Training epochs.")] = 4

    @field_validator("activations")
    @classmethod
    def _whole_int8(cls, value: int, info: ValidationInfo) -> int:
        if value == 8 and info.data.get("bits") != 8:
            raise ValueError("`bits` 8 with it")
        given = [name for name in _PACKED_ONLY if info.data.get(name)]
        if value == 8 and given:
            raise ValueError(f"no `{given[0]}` with it: every layer is in 8 bit, per channel")
        return value

    @field_validator("target")
    @classmethod
    def _int8_target(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("activations") != 8:
            raise ValueError("`activations` 8 with it")
        return value

    @property
    def aims_at(self) -> str | None:
        """The target, where one was named."""
        return self.target

    @property
    def promises_speed(self) -> bool:
        """Products of integers do, codes of weights alone don't."""
        return self.activations == 8

    def run(self, model: Model, ctx: Context) -> Model:
        """Train and quantize a module in place.

        Raises:
            UsageError: There is no data.
            InputError: The data don't fit, or training diverged.
        """
        from compresskit.train.processes import Team, on_device
        from compresskit.train.qat import quantize_trained

        if ctx.data is None:
            raise UsageError("quantize `method` qat needs training data", "give `data` FILE")
        module = model.module
        plan = self.training_plan(module, model.card, ctx)
        with on_device(Team().device, module):
            if self.activations == 8:
                fitted = self._train_int8(module, plan)
            else:
                facts, skipped, fitted = quantize_trained(module, self.selection(), plan)
        if self.activations == 8:
            model, facts, skipped = self._written(model, ctx)
        labels = plan.task.labels and self.teacher_share < 1
        aim = "labels and the model's own outputs" if labels else "the model's own outputs, without labels"
        facts["notes"] = self.notes(plan, fitted, ctx, aim) + facts.get("notes", [])
        count = len(plan.samples)
        if count < _FEW:
            facts["notes"].append(f"{count} samples are few for training: adaround needs less data")
        facts["training"] = self.told(plan, fitted, ctx)
        return self.recorded(model, facts, skipped)

    @classmethod
    def replay(cls, module: nn.Module, facts: QuantizeFacts | StaticFacts, tensors: Tensors) -> Tensors:
        """Put empty packed layers in the place of the quantized ones."""
        if isinstance(facts, StaticFacts):
            raise InputError("a file with activations in 8 bit has no module any more", "remove `arch`")
        return super().replay(module, facts, tensors)

    def _writer(self) -> QuantizeInt8Static:
        from compresskit.stages.quantize_int8_static import QuantizeInt8Static

        return QuantizeInt8Static(target=self.target)

    def _train_int8(self, module: nn.Module, plan: TrainingPlan) -> Fitted:
        from compresskit.train.qat import train_int8

        levels = 63 if self._writer().made_for().int8.options()["reduce_range"] else 127
        return train_int8(module, self.selection(), plan, levels=levels)

    def _written(self, model: Model, ctx: Context) -> tuple[Model, dict[str, Any], dict[str, str]]:
        """Export a module that was trained on 8 bits, and let the writer of static int8 files put in the codes."""
        from compresskit.exporter.checked import export_checked
        from compresskit.exporter.parity import ParityCheck
        from compresskit.exporter.pooled import pooling

        path = ctx.work / "trained.onnx"
        check = ParityCheck(seed=ctx.seed, data=ctx.data)
        with pooling(model.module, model.card.usage):
            export_checked(model.module, model.card.inputs, path, check, progress=ctx.progress)
        written = self._writer().run(replace(model, body=path), ctx)
        last = written.card.history[-1]
        return replace(model, body=written.body), last.facts, last.skipped
