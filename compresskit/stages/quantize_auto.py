"""``quantize`` without `method`: looks at the model and the data, and picks method, layers and bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import UsageError
from compresskit.kinds import QUANTIZE
from compresskit.model import Model, portable
from compresskit.stage import Chosen, Context, Searched, Stage, Tunable
from compresskit.stages.fields import Exclude, GroupSize, Include, Rotate, Symmetric, TargetLatency, with_bits
from compresskit.stages.formats import BITS_OF, FormatName, check_format
from compresskit.stages.quantize_adaround import BATCH, QuantizeAdaround
from compresskit.stages.quantize_gptq import QuantizeGptq
from compresskit.stages.quantize_int8_dynamic import QuantizeInt8Dynamic
from compresskit.stages.quantize_int8_static import QuantizeInt8Static
from compresskit.stages.quantize_rtn import QuantizeRtn
from compresskit.stages.quantize_smoothquant import QuantizeSmoothquant
from compresskit.stages.shared_int8 import TargetName
from compresskit.stages.weight_only import FLOAT

if TYPE_CHECKING:
    from torch import nn

    from compresskit.ops.quantize.auto import Plan
    from compresskit.ops.quantize.select import Selection
    from compresskit.ops.quantize.weights import Layers

Preset = Literal["fast", "quick", "balanced", "best"]
_OWN = ("target_bits", "target_latency", "preset")
_BY_LAYER = ("target_bits", "target_latency")
"""Targets that each layer gets bits of its own for."""
_EFFORT: dict[tuple[str, str], dict[str, Any]] = {
    ("quick", "gptq"): {"samples": 64},
    ("quick", "adaround"): {"samples": 512, "steps": 150},
    ("best", "gptq"): {"samples": 512, "refine": 6},
    ("best", "adaround"): {"steps": 1500},
}
"""Options of a calibrated method that a preset changes."""
_MEASURED = {"fast": 8, "quick": 8, "balanced": 16, "best": 64}
"""Samples on which the effect of each layer is measured."""
_MADE_UP = 16
_LIMITED = 512
"""Samples on which a quality limit is checked."""


class QuantizeAuto(Stage):
    """Choose the method by model and data, and give sensitive layers more bits.

    Without `data`, weights are rounded. With `data`, 4 bits and fewer are calibrated: gptq for models of Linear layers,
    adaround for convolutions. 8 bits quantize activations too. The sensitivity of each layer is measured first. Bits
    are then distributed within 2 % of the size of `bits`, or within `target_bits`, `max_size` or `max_drop`. The report
    says what was chosen and why; the card records it as explicit options of that method.
    """

    kind: ClassVar = QUANTIZE
    method: ClassVar[str] = "auto"
    searched: ClassVar = Searched(
        ("cnn", "text", "causal-lm", "linear", "tiny"), preview={"preset": "fast"}, efforts=({"preset": "quick"}, {})
    )
    takes: ClassVar = ("torch", "onnx", "weights")
    gives: ClassVar = "same"
    needs_no_replay: ClassVar[bool] = True

    bits: Annotated[
        Literal[2, 3, 4, 5, 6, 8] | None,
        Field(
            description="Bits per weight; sensitive layers get more. 5 and 6 only with `weight_format` k-quant. (4; 8 "
            "for an ONNX file)"
        ),
    ] = None
    target_bits: Annotated[
        float | None,
        Field(ge=2, le=8, description="Mean bits per weight, including scales. Each layer gets bits of its own."),
        Tunable(2.5, 6, step=0.25),
    ] = None
    target_latency: TargetLatency = None
    preset: Annotated[
        Preset,
        Field(
            description="Effort. fast: no calibration; quick: calibration in about a third of the time of balanced; "
            "balanced: calibration; best: longer calibration."
        ),
    ] = "balanced"
    target: Annotated[
        TargetName | None, Field(description="Target CPU of an 8-bit file with quantized activations. (this machine)")
    ] = None
    group_size: GroupSize = None
    symmetric: Symmetric = False
    weight_format: FormatName = "linear"
    include: Include = ()
    exclude: Exclude = ()
    rotate: Rotate = False
    samples: Annotated[
        int | None, Field(ge=1, description="Number of calibration samples. (default of the method)")
    ] = None

    @model_validator(mode="after")
    def _goes_together(self) -> QuantizeAuto:
        check_format(self.weight_format, self.bits, self.group_size, self.symmetric)
        return self

    @property
    def aims_at(self) -> str | None:
        """The target, where one was named."""
        return self.target

    @property
    def label(self) -> str:
        """The method with its bits, unless its name says them."""
        return with_bits(self.method, self.bits)

    def run(self, model: Model, ctx: Context) -> Model:
        """Choose, and run what was chosen; a method for ONNX files needs an ONNX file here."""
        for stage in self.choose(model, ctx).stages:
            model = stage.run(model, ctx)
        return model

    def reads(self, *, data: bool, limited: bool) -> Literal["all", "mapped", "streamed"]:
        """One by one where nothing is there to choose by, so that it comes to plain rounding."""
        return "all" if data or limited or self.target_bits is not None else "streamed"

    def splits(self, *, data: bool, limited: bool) -> bool:
        """Where it comes to plain rounding."""
        return self.reads(data=data, limited=limited) == "streamed"

    def choose(self, model: Model, ctx: Context) -> Chosen:
        """The method with explicit options.

        Raises:
            UsageError: An option was given that the chosen method doesn't have.
            InputError: Nothing can be quantized, or the size that was asked for can't be kept.
        """
        if isinstance(model.body, Path):
            return self._of_file(model.body, model.source, ctx)
        from compresskit.ops.quantize.opened import opened

        with opened(model.body):
            sized = ctx.max_bytes is not None or any(getattr(self, name) is not None for name in _BY_LAYER)
            if self.bits == 8 and not sized and self.weight_format == "linear":
                return self._eight(model.body, ctx)
            return self._few(model, model.body, ctx)

    def _of_file(self, path: Path, source: Path, ctx: Context) -> Chosen:
        """ONNX takes 8 bits only; bare tensors take rounding only."""
        if given := [name for name in _BY_LAYER if getattr(self, name) is not None]:
            raise UsageError(
                f"`{given[0]}`: {source} has no architecture, which each layer's bits are chosen on",
                "give the checkpoint with `arch`, or the Hugging Face folder",
            )
        if path.suffix != ".onnx":
            return self._as(QuantizeRtn, "there are tensors, but no architecture", bits=self.bits or 4)
        if self.bits not in (None, 8):
            raise UsageError(
                f"`bits` {self.bits}: {source} is an ONNX file, which is quantized to 8 bits",
                "start from the checkpoint for fewer bits",
            )
        if ctx.data is None:
            return self._as(QuantizeInt8Dynamic, "an ONNX file, and no `data` to calibrate on", bits=8)
        return self._as(QuantizeInt8Static, "an ONNX file, and data to calibrate on", bits=8)

    def _eight(self, module: nn.Module, ctx: Context) -> Chosen:
        from compresskit.ops.quantize.effort import work_of
        from compresskit.ops.route.exits import WithExits

        if ctx.data is None or self.preset == "fast":
            return self._as(QuantizeRtn, "no `data`" if ctx.data is None else "preset fast")
        if work_of(self._layers(module).layers).convolutions > 0.5:
            return self._as(QuantizeInt8Static, "most weights are in convolutions")
        if isinstance(module, WithExits):
            return self._as(QuantizeInt8Static, "the model has early exits, which smoothquant cannot follow")
        return self._as(QuantizeSmoothquant, "most weights are in Linear layers, whose inputs often have outliers")

    def _few(self, model: Model, module: nn.Module, ctx: Context) -> Chosen:
        from compresskit.ops.quantize.effort import work_of

        bits, layers = self.bits or 4, self._layers(module)
        work = work_of(layers.layers)
        cls: type[Stage] = QuantizeAdaround if work.convolutions > 0.5 else QuantizeGptq
        why = f"{100 * work.convolutions:.0f} % of the weights are in convolutions"
        if ctx.data is None or self.preset == "fast":
            cls, why = QuantizeRtn, "no `data` to calibrate on" if ctx.data is None else "preset fast"
        options = {"bits": bits, **_EFFORT.get((self.preset, cls.method), {})}
        if cls is not QuantizeRtn:
            self._tell_cost(self._as(cls, why, **options).stages[0], layers, model, module, ctx)
        plan = self._plan(layers, model, module, ctx)
        own, notes = (plan.bits, plan.notes) if plan is not None else ({}, ())
        if self.target_latency is not None:
            own, said = self._in_time(self.target_latency, own, layers, model, module, ctx)
            notes = (*notes, said)
        if own:
            options["layer_bits"] = tuple(f"{name}={n}{self._group(n)}" for name, n in own.items())
        if plan is not None and cls is QuantizeAdaround and (self.target_bits or ctx.max_bytes):
            options["edge_bits"] = bits
        chosen = self._as(cls, why, **options)
        return Chosen(chosen.stages, (*chosen.notes, *notes))

    def _group(self, bits: int) -> str:
        """What follows the bits in ``layer_bits``."""
        return "" if bits == FLOAT or self.weight_format != "linear" else f"/{self.selection(bits).group_size}"

    def _in_time(
        self, target: float, own: dict[str, int], layers: Layers, model: Model, module: nn.Module, ctx: Context
    ) -> tuple[dict[str, int], str]:
        """Bits of layers that aren't the usual ones, more of them where the model is to be faster; and a note."""
        from compresskit.stages.bits_in_time import bits_in_time

        usual = self.bits or 4
        bits = dict.fromkeys(layers.layers, usual) | own
        selections = {b: self.selection(b) for b in BITS_OF[self.weight_format]}
        found, said = bits_in_time(module.eval(), model.card.inputs, layers, bits, selections, target, ctx)
        return {name: b for name, b in found.items() if b != usual}, said

    def _as(self, cls: type[Stage], why: str, **options: Any) -> Chosen:
        """A method with what was asked for and what was chosen."""
        fields = type(self).model_fields
        asked = {n: getattr(self, n) for n in fields if n not in _OWN and getattr(self, n) != fields[n].default}
        if foreign := [name for name in asked if name not in cls.model_fields]:
            raise UsageError(
                f"`{foreign[0]}`: {cls.method}, which fits here ({why}), has no such option",
                "name a method that has it with `method`",
            )
        stage = cls(**{**options, **asked})
        name = cls.method if stage.label == cls.method else f"{cls.method}, {stage.bits} bit"  # type: ignore[attr-defined]
        return Chosen((stage,), (f"auto chose {name}: {why}",))

    def _layers(self, module: nn.Module) -> Layers:
        from compresskit.ops.quantize.weights import plan_layers

        return plan_layers(module, self.selection())

    def selection(self, bits: int | None = None) -> Selection:
        """The grids that weights get which have these bits, else the usual ones."""
        named = {n: getattr(self, n) for n in ("group_size", "symmetric", "weight_format", "include", "exclude")}
        return QuantizeRtn(bits=bits or self.bits or 4, **named).selection()  # type: ignore[arg-type]

    def _plan(self, layers: Layers, model: Model, module: nn.Module, ctx: Context) -> Plan | None:
        """Bits by layer; None where all have the same."""
        from compresskit.ops.quantize.auto import Wanted, plan_bits
        from compresskit.ops.quantize.heldout import limit_on
        from compresskit.stages.batches import batches_of, forward_of, made_up

        asked = self.target_bits is not None or ctx.max_bytes is not None or ctx.max_drop is not None
        if not asked and (ctx.data is None or self.preset == "fast"):
            return None
        if self.rotate:
            module, layers = self._rotated(module, ctx.seed)
        inputs, within, notes = model.card.inputs, None, []
        if ctx.data is None:
            count = 0
            batches = [made_up(inputs, _MADE_UP, ctx.seed)]
            notes.append("sensitivities were measured on random inputs: give `data` for better ones")
        else:
            count = min(_MEASURED[self.preset], len(ctx.data))
            batches = batches_of(ctx.data, inputs, 16, count)
            if ctx.max_drop is not None:
                used = max(count, self.samples or 0, len(ctx.data) // 2 if len(ctx.data) < 2 * _LIMITED else 1024)
                within = limit_on(
                    module.eval(), inputs, ctx.data, skip=used, limit=_LIMITED, task=model.card.task,
                    max_drop=ctx.max_drop,
                )  # fmt: skip
                if within is None:
                    name = portable(ctx.data.name)
                    notes.append(f"`max_drop` was not used for the choice: {name} has too few samples, or no labels")
        selections = {b: self.selection(b) for b in BITS_OF[self.weight_format]}
        turned = f", rotated with seed {ctx.seed}" if self.rotate else ""
        plan = plan_bits(
            module.eval(),
            layers.layers,
            lambda shape, bits: selections[bits].grid(shape),
            Wanted(self.bits or 4, self.target_bits, ctx.max_bytes, within),
            batches,
            forward_of(module, inputs),
            ctx.progress,
            choices=tuple(selections),
            ties=layers.ties,
            scores=model.card.task in ("causal-lm", "classification"),
            once=lambda name, make: ctx.once(f"{name}{turned}, on the first {count} samples", make),
        )
        return replace(plan, notes=(*plan.notes, *notes))

    def _rotated(self, module: nn.Module, seed: int) -> tuple[nn.Module, Layers]:
        """A copy as the chosen method will see it: it is on that one that layers are measured."""
        from compresskit.ops.quantize.rotate import plan_rotation, rotate

        module = copy.deepcopy(module)
        rotate(module, plan_rotation(module, seed))
        return module, self._layers(module)

    def _tell_cost(self, stage: Stage, layers: Layers, model: Model, module: nn.Module, ctx: Context) -> None:
        """Say what it will take before it begins."""
        from compresskit.ops.quantize import effort
        from compresskit.stages.batches import batches_of, forward_of

        if ctx.data is None:
            return
        batches = batches_of(ctx.data, model.card.inputs, 16, 16)
        each = effort.seconds_a_sample(module.eval(), batches[0], forward_of(module, model.card.inputs))
        work = effort.work_of(layers.layers)
        if isinstance(stage, QuantizeAdaround):
            samples = min(stage.samples, len(ctx.data))
            seconds = effort.adaround_seconds(work, each, samples, stage.steps, BATCH)
        elif isinstance(stage, QuantizeGptq):
            samples = min(stage.samples, len(ctx.data))
            seconds = effort.gptq_seconds(work, each, samples)
        else:
            return
        quicker = "; `preset` fast rounds without calibration" if self.preset != "fast" else ""
        count = f"{samples} sample{'s' * (samples > 1)}"
        ctx.tell(
            f"{stage.method} on {count}: about {effort.duration(seconds)}, then export and measuring (preset "
            f"{self.preset}{quicker})"
        )
