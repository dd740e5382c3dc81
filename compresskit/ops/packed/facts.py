"""What is recorded of quantized layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from compresskit.facts import Facts, Flag, Group, LayerFacts, Layers, Name, Number, Shape, Text, Whole
from compresskit.ops.packed.format import LINEAR
from compresskit.ops.packed.formats import FORMATS
from compresskit.ops.packed.layout import Grid


@dataclass(frozen=True, kw_only=True)
class PackedFacts(LayerFacts):
    """Of one layer: enough to rebuild it empty.

    Attributes:
        kind: Its class in the original; empty where only its tensor was known.
        bits: See :class:`~compresskit.ops.packed.layout.Grid`.
        group_size: Columns that share a scale; 0 is a whole row.
        symmetric: No zero points are stored.
        grid: Name of the format; none is recorded where steps are equal.
        shape: Of the original weight.
        scales: dtype of the scales.
        sqnr: How much louder the weight is than its rounding error, in dB; None where the layer makes up for more.
        repair: Rank of the low-rank term; 0 for none.
        input_scale: Whether inputs are multiplied by stored numbers.
    """

    kind: Text
    bits: Whole
    group_size: Group
    symmetric: Flag
    grid: Text = LINEAR.name
    shape: Shape
    scales: Literal["float16", "float32"]
    sqnr: Number | None = None
    repair: Group = 0
    input_scale: Flag = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        self.layout()
        if self.repair > min(self.shape[0], prod(self.shape[1:])):
            raise ValueError(f"a repair of rank {self.repair} is larger than a weight of {self.shape}")

    def layout(self) -> Grid:
        """The grid.

        Raises:
            ValueError: There is none with these numbers.
        """
        known = FORMATS.get(self.grid)
        if known is None:
            raise ValueError(f"'{self.grid}' is no format of weights; known: {', '.join(FORMATS)}")
        return Grid(self.bits, self.group_size, self.symmetric, known)


@dataclass(frozen=True, kw_only=True)
class QuantizeFacts(Facts):
    """Of a module whose weights were quantized.

    Attributes:
        layers: The quantized layers.
        ties: Layers whose weight is that of another, and which.
        stored: How a Hugging Face folder holds them, if not as this program does.
    """

    layers: Layers[PackedFacts]
    ties: Mapping[Name, Name]
    stored: Literal["bitsandbytes"] | None = None

    def __post_init__(self) -> None:
        """Refuse ties between layers that can't share a weight."""
        for name, owner in self.ties.items():
            pair = [self.layers.get(layer) for layer in (name, owner)]
            if None in pair or owner in self.ties or len({tuple(p.shape) for p in pair if p}) > 1:
                raise ValueError(f"'{name}' can't share the weight of '{owner}'")
