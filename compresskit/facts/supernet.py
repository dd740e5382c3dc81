"""What is recorded of a model whose parts were trained to work alone, and of a part that was taken out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from compresskit.facts import Facts, Index, LayerFacts, Layers, Name, Number, Rank, Size, Text
from compresskit.facts.prune import CutFacts, Shortcut, Stack

Share = Annotated[float, Field(strict=True, gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class ElasticFacts:
    """What may be left out of a supernet.

    Attributes:
        order: First layer of a group of channels to its units, in the order in which they go.
        blocks: Those that may be dropped, in the order in which they go.
        least: The narrowest share of the channels that was trained.
        multiple: Channels stay in multiples of this.
    """

    order: Layers[list[Index]]
    blocks: list[Name]
    least: Share
    multiple: Rank

    def __post_init__(self) -> None:
        """Refuse an order that leaves units out, or names some twice."""
        for name, units in self.order.items():
            if sorted(units) != list(range(len(units))):
                raise ValueError(f"the order of '{name}' isn't one of {len(units)} units")
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError("a block goes twice")


@dataclass(frozen=True, kw_only=True)
class SubnetFacts(Facts):
    """Of a module that was taken out of a supernet.

    Attributes:
        layers: Those that are narrower, or dropped.
        rewritten: Modules whose shortcuts became convolutions first.
        stacks: The rows that dropped blocks stood in.
        config: What ``config.json`` says otherwise; None for a module that has none.
        share: What is left, by unit; above 1 where a shortcut became a convolution and little is gone.
        recalibrated: Batch normalizations whose statistics were re-estimated.
    """

    layers: Layers[CutFacts | LayerFacts] = field(default_factory=dict)
    rewritten: Layers[list[Shortcut]] = field(default_factory=dict)
    stacks: Layers[Stack] = field(default_factory=dict)
    config: dict[Text, Any] | None = None
    share: Mapping[Text, Number] = field(default_factory=dict)
    recalibrated: Size | None = None
