"""What is recorded of modules that others stand in for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from compresskit.facts import Count, Facts, Flag, Index, LayerFacts, Layers, Name, Number, Pair, Shape, Size, Text
from compresskit.facts.factorize import FitFacts
from compresskit.facts.prune import CutFacts

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
        norm: Name of the original's normalization that follows it, within the block.
        aim: Name of another layer whose output it gives too, and which passes on what it is given.
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
    aim: Name | None = None
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


@dataclass(frozen=True, kw_only=True)
class BypassFacts:
    """Of one layer whose units partly or all pass by their ReLU.

    Attributes:
        first: Name of the layer that gives the units.
        between: The ReLU, and what else stands between both layers.
        kept: How many units still pass through the ReLU.
    """

    first: Name
    between: list[Name]
    kept: Count


@dataclass(frozen=True, kw_only=True)
class FiringFacts:
    """What is known of units that never or always fire.

    Attributes:
        never: How many were removed because they never fire.
        always: How many got a bypass because they always fire.
        units: That there are.
        returned: Units that were found and stay, as they did otherwise in other samples.
        proven: Of those removed or bypassed: how many can't do otherwise for any input within the samples' ranges.
        samples: On which they were found.
        held_out: Further samples.
        within: How many of these lie within those ranges.
        deviating: How many of these any of the units does otherwise in.
        bound: Below this lies the share of such samples, with 95 % confidence.
        change: Largest relative change of the output on them.
    """

    never: Count
    always: Count
    units: Count
    returned: Count
    proven: Count
    samples: Count
    held_out: Count
    within: Count
    deviating: Count
    bound: Number
    change: Number


@dataclass(frozen=True, kw_only=True)
class FoldedFacts(LayerFacts):
    """Of one layer that several were put together into, or whose units were removed.

    Attributes:
        holder: Name of the module whose code had the layers that were put together.
        gone: Those that are gone, by their names in it.
        cut: Its channels before and after, in which it stands as it was put together.
        bypass: How units pass by the ReLU in front of it.
    """

    holder: Name | None = None
    gone: list[Name] = field(default_factory=list)
    cut: CutFacts | None = None
    bypass: BypassFacts | None = None


@dataclass(frozen=True, kw_only=True)
class FoldFacts(Facts):
    """Of a module whose layers were put together.

    Attributes:
        layers: What came of them.
        firing: What is known of units that were removed.
    """

    layers: Layers[FoldedFacts]
    firing: FiringFacts | None = None


@dataclass(frozen=True, kw_only=True)
class PartsFacts(LayerFacts):
    """Of one layer that became several cheaper ones.

    Attributes:
        time: Share of the original's time.
        loss: Distance of the model's output with this one alone.
    """

    time: Number | None = None
    loss: Number | None = None


@dataclass(frozen=True, kw_only=True)
class DepthwiseFacts(PartsFacts):
    """Of one convolution that became depthwise ones and a 1×1.

    Attributes:
        multiplier: Windows a channel.
    """

    multiplier: Annotated[int, Field(strict=True, ge=1, le=64)]


@dataclass(frozen=True, kw_only=True)
class BottleneckFacts(PartsFacts):
    """Of one layer that became a bottleneck.

    Attributes:
        width: Channels in between.
    """

    width: Size


@dataclass(frozen=True, kw_only=True)
class ReplacedFacts(Facts):
    """Of a module in which several layers took the place of one, each time.

    Attributes:
        layers: The layers that were replaced.
        refit: What the fit along the model gained.
        share: What is left of the model, by unit.
        timed: Pairs: share of the multiply-accumulates, and of the time it took.
    """

    layers: Layers[PartsFacts]
    refit: FitFacts | None = None
    share: Mapping[Text, Number] = field(default_factory=dict)
    timed: list[list[Number]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SeparableFacts(ReplacedFacts):
    """Of a module with depthwise convolutions."""

    layers: Layers[DepthwiseFacts]


@dataclass(frozen=True, kw_only=True)
class NarrowedFacts(ReplacedFacts):
    """Of a module with bottlenecks."""

    layers: Layers[BottleneckFacts]


@dataclass(frozen=True, kw_only=True)
class MergeFacts(LayerFacts):
    """Of one block in which tokens are merged or dropped.

    Attributes:
        merged: How many tokens fewer leave it than come: of all, or of each window.
    """

    merged: Annotated[Count, Field(le=1 << 20)] = 0


@dataclass(frozen=True, kw_only=True)
class TokensFacts(Facts):
    """Of a module whose blocks merge or drop tokens.

    Attributes:
        layers: All blocks from the first to the last that is computed together.
        reduction: Similar tokens become one; or those with little attention are dropped, or become one.
        protected: Tokens in front that stay as they are.
        window: Tokens of a window, each of which loses as many; 0: no windows.
        restored: Whether the last block gives as many tokens as the first one takes.
        place: Where the tokens stand among a block's arguments: a position or a keyword.
        values: How many values a block returns as a tuple; 0 returns that of the tokens alone.
        left: What is left of the model, by unit.
        tokens: Before the first block and behind the last, for the sample that was looked at.
        time: Share of the original's time.
        timed: Pairs: share of the multiply-accumulates, and of the time it took.
    """

    layers: Layers[MergeFacts]
    reduction: Literal["merge", "prune", "fuse"] = "merge"
    protected: Annotated[Count, Field(le=64)] = 0
    window: Annotated[Count, Field(le=1 << 12)] = 0
    restored: Flag = True
    place: Index | Name = 0
    values: Annotated[Count, Field(le=64)] = 0
    left: Mapping[Text, Number] = field(default_factory=dict)
    tokens: Annotated[list[Count], Field(max_length=2)] = field(default_factory=list)
    time: Number | None = None
    timed: list[list[Number]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AttentionFacts(LayerFacts):
    """Of one module of self-attention at less than the square of the length.

    Attributes:
        window: Tokens on either side that are heard; 0: no window.
        everywhere: First tokens that all hear, and that hear all.
        rank: Sums of keys and values in the place of all of them; 0: none.
        tokens: Of a sequence, where it has sums.
        kernel: What weighs the keys in the place of softmax: random features of it, or ``elu(x) + 1``; None: softmax.
        features: Random features; 0: none.
        width: Of a head, where there are random features.
        place: Where the tokens stand among the arguments: a position or a keyword.
        values: How many values are returned as a tuple; 0 returns that of the tokens alone.
    """

    window: Annotated[Count, Field(le=1 << 14)] = 0
    everywhere: Annotated[Count, Field(le=64)] = 0
    rank: Annotated[Count, Field(le=1 << 14)] = 0
    tokens: Annotated[Count, Field(le=1 << 16)] = 0
    kernel: Literal["softmax", "elu"] | None = None
    features: Annotated[Count, Field(le=1 << 14)] = 0
    width: Annotated[Count, Field(le=1 << 14)] = 0
    place: Index | Name = 0
    values: Annotated[Count, Field(le=64)] = 0


@dataclass(frozen=True, kw_only=True)
class SparseFacts(Facts):
    """Of a module with such attention.

    Attributes:
        layers: Those modules.
        time: Share of the original's time.
        timed: Pairs: share of the layers that stay as they are, and of the time it took.
    """

    layers: Layers[AttentionFacts]
    time: Number | None = None
    timed: list[list[Number]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PatchFacts(LayerFacts):
    """Of a convolution that cuts images into larger patches than before.

    Attributes:
        size: Pixels a side of a patch.
        image: Height and width of an image.
        positions: Names of the tensors with a position for each patch.
    """

    size: Annotated[Size, Field(le=512)]
    image: Pair
    positions: Annotated[list[Name], Field(max_length=16)] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class PatchesFacts(Facts):
    """Of a vision transformer with larger patches.

    Attributes:
        layers: The convolution.
        left: What is left of the model, by unit.
        patches: Their number before and after.
        time: Share of the original's time.
        timed: Pairs: share of the multiply-accumulates, and of the time it took.
    """

    layers: Layers[PatchFacts]
    left: Mapping[Text, Number] = field(default_factory=dict)
    patches: Annotated[list[Count], Field(max_length=2)] = field(default_factory=list)
    time: Number | None = None
    timed: list[list[Number]] = field(default_factory=list)
