"""The option for what codes stand for, of the methods that know more than equal steps with a scale for each group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from compresskit.errors import UsageError
from compresskit.facts import Facts
from compresskit.model import Model
from compresskit.ops.packed.format import BITS
from compresskit.ops.packed.k_quant import K_QUANT
from compresskit.stages.weight_only import LayerBits, WeightOnly, layer_bits_of, parse_layer_bits

if TYPE_CHECKING:
    from compresskit.ops.quantize.select import Selection

KNOWN = tuple(sorted({*BITS, *K_QUANT.bits}))
BITS_OF = {"linear": BITS, "k-quant": KNOWN}
"""Bits that a layer may have, by the format that was asked for."""
_SLOW = (
    "k-quant is for `to` gguf: an ONNX file of it is as small, but the runtime unpacks it at load, so it is no faster"
)
_REST = "they have groups of 32, as Q4_0 or Q8_0 of GGUF"
FormatName = Annotated[
    Literal["linear", "k-quant"],
    Field(
        description="What codes mean. linear: a float scale per group, for every export. k-quant: two-level scales in "
        "super-blocks of 256 columns, Q2_K to Q6_K of GGUF by `bits`; more accurate at equal size."
    ),
]


def check_format(
    name: str, bits: int | None, group_size: int | None, symmetric: bool, layer_bits: tuple[str, ...] = ()
) -> None:
    """Refuse options that a format doesn't go with.

    Raises:
        UsageError: Naming the option.
    """
    layers = layer_bits_of(layer_bits, KNOWN)
    if name == "linear":
        if odd := [n for n in (bits, *(n for n, _ in layers.values())) if n in {*KNOWN} - {*BITS}]:
            raise UsageError(f"{odd[0]} bits need `weight_format` k-quant", "or give 2, 3, 4 or 8")
        return
    if group_size is not None or any(group is not None for _, group in layers.values()):
        raise UsageError("`group_size` can't be chosen with `weight_format` k-quant: its groups have 16 or 32 columns")
    if symmetric:
        raise UsageError("`symmetric` can't be chosen with `weight_format` k-quant: the bits decide", "leave it out")


class Formatted(WeightOnly):
    """Methods whose codes may have any of these formats."""

    bits: Annotated[
        Literal[2, 3, 4, 5, 6, 8], Field(description="Bits per weight; 5 and 6 only with `weight_format` k-quant.")
    ] = 4  # type: ignore[assignment]  # more than methods of one format have
    weight_format: FormatName = "linear"
    layer_bits: LayerBits = ()

    @field_validator("layer_bits")
    @classmethod
    def _known_layers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_layer_bits(text, KNOWN)
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> Formatted:
        check_format(self.weight_format, self.bits, self.group_size, self.symmetric, self.layer_bits)
        return self

    def selection(self) -> Selection:
        """The options as the algorithm takes them."""
        if self.weight_format == "linear":
            return super().selection()
        from compresskit.ops.quantize.select import Selection

        layers = layer_bits_of(self.layer_bits, KNOWN)
        return Selection(self.bits, 0, False, self.include, self.exclude, K_QUANT, layer_bits=layers)

    def recorded(
        self, model: Model, facts: Facts | Mapping[str, Any], skipped: Mapping[str, str] | None = None
    ) -> Model:
        """See :class:`~compresskit.stage.Stage`; the notes say what the format means for the files."""
        if self.weight_format == "linear" or isinstance(facts, Facts):
            return super().recorded(model, facts, skipped)
        told = [_SLOW]
        if rest := sum(not K_QUANT.holds(tuple(layer["shape"]), K_QUANT.bits[0]) for layer in facts["layers"].values()):
            told.append(f"the rows of {rest} layers are no multiple of 256 columns: {_REST}")
        before = [note for note in facts.get("notes", []) if note not in told]
        return super().recorded(model, {**facts, "notes": [*before, *told]}, skipped)
