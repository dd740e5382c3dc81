"""What is recorded of quantized layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from compresskit.facts import Bits, Count, Facts, Flag, Group, LayerFacts, Layers, Name, Number, Shape, Size, Text


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
    bits: Bits
    group_size: Group
    symmetric: Flag
    grid: Text = "linear"
    shape: Shape
    scales: Literal["float16", "float32"]
    sqnr: Number | None = None
    repair: Group = 0
    input_scale: Flag = False

    def __post_init__(self) -> None:
        """Refuse a term that is larger than the weight."""
        if self.repair > min(self.shape[0], prod(self.shape[1:])):
            raise ValueError(f"a repair of rank {self.repair} is larger than a weight of {self.shape}")


@dataclass(frozen=True, kw_only=True)
class RotationFacts:
    """Of a rotation that was folded into the weights before they were quantized.

    Attributes:
        kind: A randomized Hadamard matrix, or a random orthogonal one.
        size: Of the hidden states.
        head: Of the values of one head.
        seed: Of the random signs.
        untied: A layer that had the weight of the embeddings before.
    """

    kind: Literal["hadamard", "orthogonal"]
    size: Size
    head: Size
    seed: int
    untied: Name | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizeFacts(Facts):
    """Of a module whose weights were quantized.

    Attributes:
        layers: The quantized layers.
        ties: Layers whose weight is that of another, and which.
        stored: How a Hugging Face folder holds them, if not as this program does.
        rotation: What the weights were rotated by.
        config: What ``config.json`` says otherwise.
    """

    layers: Layers[PackedFacts]
    ties: Mapping[Name, Name]
    stored: Literal["bitsandbytes"] | None = None
    rotation: RotationFacts | None = None
    config: dict[Text, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse ties between layers that can't share a weight."""
        for name, owner in self.ties.items():
            pair = [self.layers.get(layer) for layer in (name, owner)]
            if None in pair or owner in self.ties or len({tuple(p.shape) for p in pair if p}) > 1:
                raise ValueError(f"'{name}' can't share the weight of '{owner}'")


@dataclass(frozen=True, kw_only=True)
class PaletteFacts(QuantizeFacts):
    """Of a module whose weights have levels of their own.

    Attributes:
        stored_bytes: Of all weights as they are stored: codes, scales and levels.
        entropy_bytes: The same with codes at their entropy; nothing stores them so.
        rtn_bytes: The weights rounded to nearest with the same bits and groups; None where it has no such bits.
        rtn_gain: How far the palettes' mean squared error lies below that of rtn, in dB, the mean of all weights.
    """

    stored_bytes: Count
    entropy_bytes: Count
    rtn_bytes: Count | None = None
    rtn_gain: Number | None = None
