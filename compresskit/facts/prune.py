"""What is recorded of pruned layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compresskit.facts import Count, Facts, Index, Into, LayerFacts, Layers, Name, Number, Pair, Size, Text
from compresskit.facts.factorize import FitFacts


@dataclass(frozen=True, kw_only=True)
class CutFacts(LayerFacts):
    """Of one layer that lost channels.

    Attributes:
        kind: Its class in the original.
        into: Channels that it took before, and takes now.
        out: Channels that it gave before, and gives now.
    """

    kind: Text
    into: Into[Pair]
    out: Pair


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """One zero-filled shortcut that became a convolution.

    Attributes:
        pad: Which padding of the module.
        into: Channels before it.
        out: Channels behind it.
        at: The first of them that isn't zero.
        stride: Of each axis behind the channels.
    """

    pad: Index
    into: Into[Size]
    out: Size
    at: Index
    stride: list[Size]


@dataclass(frozen=True, kw_only=True)
class StructuredFacts(Facts):
    """Of a module whose layers are narrower.

    Attributes:
        layers: Those layers.
        rewritten: Modules whose shortcuts became convolutions first.
        kept: First layer of a group to the original's channels that are left of it.
        share: What is left, by unit.
        refit: What the fit gained.
        timed: Pairs: share of the multiply-accumulates, and of the time it took.
    """

    layers: Layers[CutFacts]
    rewritten: Layers[list[Shortcut]] = field(default_factory=dict)
    kept: Mapping[Name, list[Index]] = field(default_factory=dict)
    share: Mapping[Text, Number] = field(default_factory=dict)
    refit: FitFacts | None = None
    timed: list[list[Number]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class BlockFacts(LayerFacts):
    """Of one block that was dropped.

    Attributes:
        distance: How far the output moves without it.
        influence: How much it changes what passes through it.
    """

    distance: Number | None = None
    influence: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A row of blocks.

    Attributes:
        of: How many there were.
        kept: The names of those that are left, in their order.
    """

    of: Size
    kept: list[Name]

    def __post_init__(self) -> None:
        """Refuse a block that is kept twice."""
        if len(set(self.kept)) != len(self.kept) or len(self.kept) > self.of:
            raise ValueError(f"{len(self.kept)} blocks kept of {self.of}")


@dataclass(frozen=True, kw_only=True)
class DepthFacts(Facts):
    """Of a module without some of its blocks.

    Attributes:
        layers: The blocks that were dropped.
        stacks: The rows that they stood in.
        config: What ``config.json`` says otherwise; None for a module that has none.
    """

    layers: Layers[BlockFacts]
    stacks: Layers[Stack]
    config: dict[Text, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class WidthFacts(Facts):
    """Of a transformers model whose layers are all narrower alike.

    Attributes:
        config: What ``config.json`` says otherwise.
    """

    config: dict[Text, Any]


@dataclass(frozen=True, kw_only=True)
class ZeroFacts(LayerFacts):
    """Of one layer with zeros.

    Attributes:
        zeros: How many of its weights are zero.
    """

    zeros: Count


@dataclass(frozen=True, kw_only=True)
class SparseFacts(Facts):
    """Of a module whose layers hold zeros.

    Attributes:
        layers: Those layers.
        zeros: Of all of them.
        of: Their weights.
    """

    layers: Layers[ZeroFacts]
    zeros: Count
    of: Count
