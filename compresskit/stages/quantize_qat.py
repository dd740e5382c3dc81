"""``quantize --method qat`` (or ``--qat``): training goes on with rounded weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from compresskit.errors import InputError, UsageError
from compresskit.model import Applied, Model, portable
from compresskit.stage import Context
from compresskit.stages.shared_int8 import TargetName
from compresskit.stages.weight_only import WeightOnly

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.train.loop import Augment, Optimizing
    from compresskit.train.qat import Task, Training

_PACKED_ONLY = ("group_size", "symmetric", "include", "exclude", "layer_bits")
_READ = 256
_SMALL = 24
"""Pixels a side below which a picture is taken for something that must not be shifted or mirrored."""
_FEW = 2000
"""Samples below which training is likely to overfit."""


class QuantizeQat(WeightOnly):
    """Go on training on --data with weights rounded in every pass. The most exact method, and the slowest.

    The model before quantization is the teacher, so it works without labels; with labels both count. Weights keep their
    scales where training ends: no rounding follows. Images are cropped and mirrored at random.
    """

    method: ClassVar[str] = "qat"
    repair: ClassVar[int] = 0  # type: ignore[misc]  # no option here: what is learnt leaves nothing to repair
    needs: ClassVar = ("calibration",)

    activations: Annotated[
        Literal[8, 16],
        Field(description="Bits of activations: 8 needs --bits 8 and gives a static int8 file; 16 is floating point."),
    ] = 16
    target: Annotated[
        TargetName | None, Field(description="What an int8 file is made for: it decides signedness. (this machine)")
    ] = None
    epochs: Annotated[int, Field(ge=1, le=10_000, description="Passes over the data.")] = 4
    samples: Annotated[int | None, Field(ge=2, description="Training samples taken from --data. (all)")] = None
    batch_size: Annotated[int, Field(ge=2, description="Samples of a step.")] = 128
    optimizer: Annotated[
        Literal["sgd", "adamw"] | None,
        Field(description="Of the training steps. (sgd for models with convolutions, else adamw)"),
    ] = None
    lr: Annotated[
        float | None, Field(gt=0, description="Learning rate; falls to zero along a cosine. (sgd: 0.01, adamw: 1e-4)")
    ] = None
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty of weights.")] = 1e-4
    ema: Annotated[
        float, Field(ge=0, lt=1, description="Decay of the moving average of weights that is kept; 0: none.")
    ] = 0.0
    teacher_share: Annotated[
        float, Field(ge=0, le=1, description="Of the loss that comes from the teacher, where there are labels.")
    ] = 0.5
    temperature: Annotated[float, Field(gt=0, description="Of the teacher's logits.")] = 2.0
    augment: Annotated[
        Literal["auto", "none", "crop", "crop-flip"],
        Field(
            description="What is done to images; auto is crop-flip for colour images of 24 pixels or more, else none."
        ),
    ] = "auto"

    @field_validator("activations")
    @classmethod
    def _whole_int8(cls, value: int, info: ValidationInfo) -> int:
        if value == 8 and info.data.get("bits") != 8:
            raise ValueError("--bits 8 with it")
        given = [name for name in _PACKED_ONLY if info.data.get(name)]
        if value == 8 and given:
            raise ValueError(f"no --{given[0].replace('_', '-')} with it: every layer is in 8 bit, per channel")
        return value

    @field_validator("target")
    @classmethod
    def _int8_target(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("activations") != 8:
            raise ValueError("--activations 8 with it")
        return value

    def run(self, model: Model, ctx: Context) -> Model:
        """Train and quantize a module in place.

        Raises:
            UsageError: There is no data.
            InputError: The data don't fit, or training diverged.
        """
        from compresskit.train.qat import Training, quantize_trained

        if ctx.data is None:
            raise UsageError("quantize --method qat needs training data", "give --data FILE")
        if isinstance(model.body, Path):
            raise TypeError("a module is needed")
        module = model.body
        tensors, task = self._material(model, ctx)
        count = len(tensors[0])
        how, augment = self._optimizing(model.body), self._augment(ctx, tensors[0])
        training = Training(self.epochs, self.batch_size, how, augment, ctx.seed, ctx.progress)
        if self.activations == 8:
            model, facts, skipped = self._int8(model, ctx, tensors, task, training)
        else:
            facts, skipped = quantize_trained(module, self.selection(), tensors, task, training)
        aim = "labels and the model's own outputs" if task.labelled else "the model's own outputs, without labels"
        name = portable(ctx.data.name)
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        notes = [f"trained for {epochs} on {count} samples of {name}, against {aim}"]
        if augment is not None:
            flipped = "" if self.augment == "crop" else " and flipped"
            notes.append(
                f"training images were shifted by up to an eighth{flipped} at random: --augment none leaves them"
            )
        facts["notes"] = notes + facts.get("notes", [])
        if count < _FEW:
            facts["notes"].append(f"{count} samples are few for training: adaround needs less data")
        facts["calibration"] = {"data": name, "samples": count, "sha256": ctx.data.fingerprint()}
        return replace(model, card=model.card.after(Applied(self.name(), self.options(), facts, skipped)))

    def _int8(
        self, model: Model, ctx: Context, tensors: list[Tensor], task: Task, training: Training
    ) -> tuple[Model, dict[str, Any], dict[str, str]]:
        """Train on 8 bits, export, and let the writer of static int8 files put the codes into the graph."""
        from compresskit.export.checked import export_checked
        from compresskit.stages.quantize_int8_static import QuantizeInt8Static
        from compresskit.train.qat import train_int8

        if isinstance(model.body, Path):
            raise TypeError("a module is needed")
        writer = QuantizeInt8Static(target=self.target)
        levels = 63 if writer.made_for().int8.options()["reduce_range"] else 127
        loss = train_int8(model.body, self.selection(), tensors, task, training, levels=levels)
        path = ctx.work / "trained.onnx"
        export_checked(model.body, model.card.inputs, path, seed=ctx.seed, progress=ctx.progress)
        written = writer.run(replace(model, body=path), ctx)
        last = written.card.history[-1]
        return replace(model, body=written.body), {**last.facts, "loss": round(loss, 6)}, last.skipped

    def _material(self, model: Model, ctx: Context) -> tuple[list[Tensor], Task]:
        """The samples in memory, and what to learn from them."""
        import torch

        from compresskit.stages.batches import batches_of, forward_of
        from compresskit.train.qat import Task

        if ctx.data is None or isinstance(model.body, Path):
            raise TypeError("data and a module are needed")
        count = min(self.samples or len(ctx.data), len(ctx.data))
        batches = batches_of(ctx.data, model.card.inputs, _READ, count, by_length=False)  # labels come in this order
        names = list(batches[0])
        if any(b[n].shape[1:] != batches[0][n].shape[1:] for b in batches for n in names):
            raise InputError(f"{ctx.data.name}: samples of unequal shapes can't be trained on", "give equal lengths")
        tensors = [torch.cat([b.pop(n) for b in batches]) for n in names]
        classes = ctx.data.labelled and ctx.data.kind != "pairs" and model.card.task in ("classification", "unknown")
        labels = [b.targets for b in ctx.data.batches(_READ, count)] if classes and self.teacher_share < 1 else []
        known = [torch.from_numpy(part) for part in labels if part is not None]
        labelled = bool(known) and known[0].dtype == torch.int64 and known[0].dim() == 1
        logits = labelled or classes or model.card.task in ("classification", "causal-lm")
        forward = forward_of(model.body, model.card.inputs)
        task = Task(names, forward, labelled, logits, self.teacher_share, self.temperature)
        return [*tensors, *([torch.cat(known)] if labelled else [])], task

    def _optimizing(self, module: nn.Module) -> Optimizing:
        from torch import nn

        from compresskit.train.loop import Optimizing

        convolves = any(isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for layer in module.modules())
        kind = self.optimizer or ("sgd" if convolves else "adamw")
        lr = self.lr or (1e-2 if kind == "sgd" else 1e-4)
        return Optimizing(lr, kind, "cosine", 0.0, self.weight_decay, self.ema)

    def _augment(self, ctx: Context, images: Tensor) -> Augment | None:
        from functools import partial

        from compresskit.train.loop import crop_and_flip

        if self.augment == "none":
            return None
        if self.augment == "auto":
            photos = ctx.data is not None and ctx.data.kind == "images" and images.dim() == 4 and images.shape[1] == 3
            if not photos or min(images.shape[2:]) < _SMALL:
                return None
        elif images.dim() != 4:
            raise UsageError(f"--augment {self.augment} is for images, the samples are {tuple(images.shape[1:])}")
        flip = self.augment != "crop"
        return partial(crop_and_flip, margin=max(1, images.shape[2] // 8), flip=flip)
