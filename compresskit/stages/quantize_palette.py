"""``quantize.palette``: weights as codes of levels that are found for them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from compresskit.facts.quantize import PaletteFacts
from compresskit.model import Model
from compresskit.stage import Context, Searched, Tunable
from compresskit.stages.coded import CodedWeights
from compresskit.stages.fields import Damping, Drift, Exclude, GroupSize, Include, Samples, with_bits
from compresskit.stages.weight_only import SAMPLES, LayerBits, layer_bits_of, parse_layer_bits

if TYPE_CHECKING:
    from compresskit.ops.quantize.select import Selection


class QuantizePalette(CodedWeights):
    """Palettes: store weights as codes of levels found for them by k-means. Smaller on disk only, as fast as float32.

    With `data` errors are weighted and compensated by the second moments of each layer's inputs; without it the levels
    fit the weights alone. The report compares with rtn of the same bits. The runtime unpacks the codes when it loads
    the file. Takes Linear layers, convolutions and embeddings; a weight that fails is left as it was, and named.
    """

    method: ClassVar[str] = "palette"
    facts: ClassVar = PaletteFacts
    searched: ClassVar = Searched(
        ("cnn", "text", "causal-lm", "linear", "tiny"),
        preview={"samples": 32, "refine": 0},
        efforts=({"samples": 128}, {"samples": 512}),
        goal="size",
    )

    bits: Annotated[Literal[2, 3, 4, 5, 6, 7, 8], Field(description="Bits per weight."), Tunable(2, 4)] = 4
    codebook: Annotated[
        Literal["tensor", "row", "group"],
        Field(
            description="What has levels of its own: each tensor, row or group. Smaller parts are more accurate and "
            "take more bytes."
        ),
    ] = "tensor"
    group_size: GroupSize = None
    samples: Samples = SAMPLES
    refine: Annotated[
        int, Field(ge=0, le=20, description="Iterations that refine levels, scales and codes after rounding.")
    ] = 3
    drift: Drift = 1.0
    damping: Damping = None
    include: Include = ()
    exclude: Exclude = ()
    layer_bits: LayerBits = ()

    @field_validator("layer_bits")
    @classmethod
    def _known_layers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from compresskit.ops.packed.format import WIDTHS

        for text in value:
            parse_layer_bits(text, WIDTHS)
        return value

    @property
    def label(self) -> str:
        """The method with its bits."""
        return with_bits(self.method, self.bits)

    def selection(self) -> Selection:
        """The options as the algorithm takes them."""
        from compresskit.ops.packed.format import WIDTHS
        from compresskit.ops.packed.palette import PALETTES
        from compresskit.ops.quantize.select import Selection

        # A table takes as much as 2 ** bits / 8 · bits codes do: a group that has one is as wide as there are.
        size = self.group_size if self.group_size is not None else 256 if self.codebook == "group" else 32
        layers = layer_bits_of(self.layer_bits, WIDTHS)
        known = PALETTES[self.codebook]
        return Selection(self.bits, size, True, self.include, self.exclude, known, layer_bits=layers)

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place."""
        from compresskit.ops.quantize.calibrated import Method
        from compresskit.ops.quantize.palette import quantize_palette
        from compresskit.ops.quantize.palette_fit import calibrate_palette
        from compresskit.ops.quantize.palette_report import PaletteReport

        report = PaletteReport()
        calibrated = partial(calibrate_palette, rounds=self.refine, damping=self.damping)
        method = Method(report.watched(calibrated), report.watched(quantize_palette), drift=self.drift, spares=True)
        facts, skipped = self.coded(model, ctx, method, self.selection(), samples=self.samples)
        found: dict[str, Any] = report.facts()
        return self.recorded(model, {**facts, **found, "notes": [*facts["notes"], *report.notes()]}, skipped)
