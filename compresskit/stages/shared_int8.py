"""What the methods that quantize activations share: their target, their ranges, and what the card says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import UsageError
from compresskit.facts import Count, Facts, Flag, LayerFacts, Layers, Name, Number, Text, Whole
from compresskit.kinds import QUANTIZE
from compresskit.model import InputSpec, Model, portable
from compresskit.stage import Context, Stage
from compresskit.stages.batches import calibration
from compresskit.stages.fields import Samples, with_bits

if TYPE_CHECKING:
    from compresskit.benchmark.target import Target

TargetName = Literal["x86-vnni", "x86-avx2", "arm64", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Int8Layer(LayerFacts):
    """What is recorded of one weight in 8 bit.

    Attributes:
        kind: The operator that reads it.
        bits: 8.
        scales: How many there are: one a channel, or one.
        sqnr: How much louder the weight is than its rounding error, in dB.
    """

    kind: Text
    bits: Whole
    scales: Count
    sqnr: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Int8Facts(Facts):
    """Of an ONNX file in 8 bit.

    Attributes:
        layers: Its weights.
        target: What it is made for.
    """

    layers: Layers[Int8Layer]
    target: Text


@dataclass(frozen=True, kw_only=True)
class StaticFacts(Int8Facts):
    """Of one whose activations are in 8 bit too.

    Attributes:
        samples: How many the ranges come from.
        tensors: Activations that were quantized.
        op_types: Operators that were.
        method: How a range follows from the values seen.
        activation: dtype of activations.
        weight: dtype of weights.
        per_channel: Whether each channel of a weight has its scale.
        format: The fast and exact form on the target.
        smoothed: Layers whose inputs were scaled first: by what power, and into what the scale was folded.
        difference: How far that moved the float outputs.
        unsmoothed: The others, with the reason.
    """

    samples: Count
    tensors: Count
    op_types: list[Text]
    method: Text
    activation: Text
    weight: Text
    per_channel: Flag
    format: Mapping[Text, Text | Flag]
    smoothed: Layers[Mapping[Text, Number | Text | None]] = field(default_factory=dict)
    difference: Number = 0.0
    unsmoothed: Mapping[Name, Text] = field(default_factory=dict)


class Int8Stage(Stage):
    """An ONNX graph whose matrix products run in 8 bit."""

    kind: ClassVar = QUANTIZE
    gives: ClassVar = "onnx"
    facts: ClassVar[type[Int8Facts]] = Int8Facts

    bits: Annotated[Literal[8], Field(description="Bits of weights and activations.")] = 8
    target: Annotated[
        TargetName | None, Field(description="Target CPU; it decides which integers are signed. (this machine)")
    ] = None
    per_channel: Annotated[bool, Field(description="One scale per output channel of a weight.")] = True

    @property
    def aims_at(self) -> str | None:
        """The target, where one was named."""
        return self.target

    @property
    def label(self) -> str:
        """The method with its bits, unless its name says them."""
        return with_bits(self.method, self.bits)

    def made_for(self) -> Target:
        """The target; this machine by default."""
        from compresskit.benchmark.target import get

        return get(self.target)

    def place(self, ctx: Context) -> Path:
        """Where the quantized file goes."""
        from compresskit.checkpoint.bundle import ONNX_NAME

        folder = ctx.work / "int8"
        folder.mkdir()
        return folder / ONNX_NAME

    def finished(self, model: Model, out: Path, facts: dict[str, Any]) -> Model:
        """The quantized file as a model, with one more entry in its history."""
        skipped = facts.pop("skipped", {})
        return self.recorded(replace(model, body=out), facts, skipped)


class StaticStage(Int8Stage):
    """Activation ranges come from calibration data."""

    needs: ClassVar = ("calibration",)
    facts: ClassVar[type[Int8Facts]] = StaticFacts

    samples: Samples = 512
    calibration: Annotated[
        Literal["minmax", "percentile", "mse", "entropy"],
        Field(
            description="Calibration of activation ranges: all values (minmax), nearly all (percentile), least "
            "squared error (mse), or least loss of information (entropy)."
        ),
    ] = "minmax"
    percentile: Annotated[
        float, Field(ge=90, le=100, description="Percentage of values inside the range, for `calibration` percentile.")
    ] = 99.999

    def check_data(self, ctx: Context) -> None:
        """Calibration needs data.

        Raises:
            UsageError: There are none.
        """
        if ctx.data is None:
            raise UsageError(f"quantize `method` {self.method} needs calibration data", "give `data` FILE")

    def quantized(self, source: Path, out: Path, inputs: tuple[InputSpec, ...], ctx: Context) -> dict[str, Any]:
        """Write ``source`` in 8 bit to ``out``, calibrated on the context's data; returns the facts.

        Args:
            source: The float file.
            out: The file to write.
            inputs: The model's, as its card has them.
            ctx: Holds the data.

        Raises:
            InputError: The data doesn't fit, or the graph can't be quantized.
            UsageError: There is no calibration data.
        """
        from compresskit.data.prepare import complete
        from compresskit.exporter.int8 import Int8Settings, quantize_static_int8

        self.check_data(ctx)
        if ctx.data is None:
            raise TypeError("checked above")
        target = self.made_for()
        chosen = target.int8.options()
        settings = Int8Settings(
            self.per_channel, **chosen, symmetric=target.name == "gpu", method=self.calibration,
            percentile=self.percentile,
        )  # fmt: skip
        rows = tuple(spec.by_sample for spec in inputs)
        found = (batch.inputs for batch in ctx.data.batches(32, min(self.samples, len(ctx.data))))
        batches = (complete(batch, rows) if rows else batch for batch in found)
        facts = quantize_static_int8(
            source, out, batches, settings, inputs=inputs, threads=ctx.threads, progress=ctx.progress
        )
        samples, data = facts["samples"], portable(ctx.data.name)
        weight = f"{chosen['weight']}{' of 7 bits' if chosen['reduce_range'] else ''}"
        notes = [
            *facts["notes"],
            f"target {target.title}: activations {chosen['activation']}, weights {weight}; ranges "
            f"({self.calibration}) from {samples} samples of {data}",
        ]
        if samples == 1:
            notes.append(
                "ranges come from one sample, and other samples will exceed them: give a few dozen or more with `data`"
            )
        calibrated = calibration(ctx.data, samples)
        return {**facts, "format": chosen, "target": target.name, "calibration": calibrated, "notes": notes}
