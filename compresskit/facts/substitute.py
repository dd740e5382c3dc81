"""What is recorded of modules that others stand in for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from compresskit.facts import Count, Facts, Index, LayerFacts, Layers, Name, Number, Shape, Size, Text
from compresskit.facts.factorize import FitFacts

Fitted = Literal["1x1", "3x3", "linear"]
"""A convolution with a window of one or nine places, or a Linear layer."""


@dataclass(frozen=True, kw_only=True)
class StandInFacts(LayerFacts):
    """Of one fitted layer, and what it stands in for.

    Attributes:
        kind: The fitted layer.
        shape: Of its weight.
        stride: Of a convolution.
        place: Where the input stands among the arguments: a position or a keyword.
        values: How many values are returned as a tuple, the first the layer's; 0 returns that alone.
        activation: What follows the layer.
        norm: Name of the original's normalization that follows it.
        loss: Distance of the model's output with this one alone.
        time: Share of the original's time.
    """

    kind: Fitted
    shape: Shape
    stride: Size = 1
    place: Index | Name = 0
    values: Annotated[Count, Field(le=64)] = 0
    activation: Literal["relu", "relu6", "silu", "gelu", "hardswish"] | None = None
    norm: Name | None = None
    loss: Number | None = None
    time: Number | None = None


@dataclass(frozen=True, kw_only=True)
class CollapseFacts(Facts):
    """Of a module in which fitted layers stand in for blocks.

    Attributes:
        layers: Those blocks.
        share: What is left of the model, by unit.
        refit: What the fit of the other layers gained.
        timed: Pairs: share of the multiply-accumulates, and of the time it took.
    """

    layers: Layers[StandInFacts]
    share: Mapping[Text, Number] = field(default_factory=dict)
    refit: FitFacts | None = None
    timed: list[list[Number]] = field(default_factory=list)
