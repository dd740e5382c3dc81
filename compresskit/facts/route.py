"""What is recorded of a model that uses only some of its pieces for an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from compresskit.facts import Count, Facts, Flag, LayerFacts, Layers, Name, Number, Size, Text

Form = Literal["pictures", "tokens", "vectors"]
"""What a block gives: ``(n, channels, height, width)``, ``(n, length, width)`` or ``(n, width)``."""
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class ExitFacts(LayerFacts):
    """Of one early exit, behind the block that it is named by.

    Attributes:
        form: What the block gives.
        width: Channels, or values of a token or a vector.
        classes: Logits.
        convs: Channels of 3×3 convolutions in front, each with a batch normalization and ReLU.
        stride: Of the first of them.
        pool: Window of the mean over a picture, height and width; empty is the whole picture.
        cells: Windows of a picture.
        hidden: Units between features and logits; 0 for none.
        threshold: Confidence from which on a sample leaves here.
        macs: Share of the model's multiply-accumulates up to here, heads of earlier exits included.
        share: Of the calibration samples that left here.
        agreement: Share of the calibration samples that the exit puts into the class of the last one.
    """

    form: Form
    width: Size
    classes: Annotated[int, Field(strict=True, ge=2, le=1 << 20)]
    convs: Annotated[list[Annotated[Size, Field(le=1 << 12)]], Field(max_length=4)] = field(default_factory=list)
    stride: Annotated[Size, Field(le=4)] = 1
    pool: Annotated[list[Size], Field(max_length=2)] = field(default_factory=list)
    cells: Size = 1
    hidden: Annotated[Count, Field(le=1 << 16)] = 0
    threshold: Share
    macs: Number = 0.0
    share: Share = 0.0
    agreement: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class ExitsFacts(Facts):
    """Of a classifier with early exits.

    Attributes:
        layers: The exits, by the blocks they follow.
        output: The key of the logits in the model's output; None where that is the logits themselves.
        frozen: The body is the original's.
        calibrated: Samples that the thresholds were calibrated on.
        drop: Points of accuracy lost on them, or of agreement with the last exit without labels.
        share: Mean share of the original's multiply-accumulates, by unit.
    """

    layers: Layers[ExitFacts]
    output: Text | None = None
    frozen: Flag = True
    calibrated: Count = 0
    drop: Number = 0.0
    share: Mapping[Text, Number] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SplitFacts(LayerFacts):
    """Of one dense feed-forward layer whose hidden units became experts; named by what these take the place of.

    Attributes:
        up: What made the hidden units.
        activation: Of them.
        down: What read them.
        gate: What else made them, where they are products.
        shared: Hidden units that all tokens go through.
        size: Hidden units of an expert.
        experts: How many there are.
        top: Experts that a token goes through.
        density: Share of the units that hold 90 % of the squares of what a token's units give.
        error: Relative error of the layer's output on tokens that the split was not made of.
        random: The same for a random split.
    """

    up: Name
    activation: Name
    down: Name
    gate: Name | None = None
    shared: Size
    size: Size
    experts: Annotated[Size, Field(le=1 << 10)]
    top: Size
    density: Number = 0.0
    error: Number = 0.0
    random: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class ExpertsFacts(Facts):
    """Of a mixture with fewer experts, or of a dense model with experts.

    Attributes:
        layers: What was done to each layer.
        config: What ``config.json`` says otherwise, of a mixture.
        distance: Of the model's output from the original's on held-out samples: of this split, of random ones, and with
            the same number of units always on.
    """

    layers: Layers[SplitFacts | LayerFacts]
    config: dict[Text, Any] | None = None
    distance: Mapping[Text, Number] = field(default_factory=dict)
