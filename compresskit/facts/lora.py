"""What is recorded of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from compresskit.facts import Count, Facts, Flag, Index, LayerFacts, Layers, Number, Pair, Rank, Shape, Text
from compresskit.facts.quantize import QuantizeFacts

Part = Literal["down", "up", "gain", "shift", "before"]


@dataclass(frozen=True, kw_only=True)
class AdaptedFacts(LayerFacts):
    """Of one layer that was adapted.

    Attributes:
        rank: Of the adapter's low-rank part; 0 for none.
    """

    rank: Index = 0


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """Of one adapter beside a layer: enough to rebuild it empty.

    Attributes:
        parts: The shapes of its tensors.
        serial: Whether it is a bottleneck.
    """

    parts: Mapping[Part, Shape]
    serial: Flag


@dataclass(frozen=True, kw_only=True)
class LoraFacts(Facts):
    """Of a module that was fine-tuned.

    Attributes:
        layers: The layers that were adapted.
        adapters: Those that lie beside the weights; None where nothing does.
        base_sha256: Hash of the weights that the adapters were trained on.
        parameters: Numbers that training moved.
        share: Of the model's.
    """

    layers: Layers[AdaptedFacts] = field(default_factory=dict)
    adapters: Layers[AdapterFacts] | None = None
    base_sha256: Text | None = None
    parameters: Count = 0
    share: Number = 0.0


@dataclass(frozen=True, kw_only=True)
class LoftqFacts(LoraFacts):
    """Of a module that was quantized under its adapters.

    Attributes:
        quantized: The layers that were.
    """

    quantized: QuantizeFacts


@dataclass(frozen=True, kw_only=True)
class PromptFacts(LoraFacts):
    """Of a language model with vectors before its text.

    Attributes:
        prompt: How many there are, and how wide.
    """

    prompt: Pair


@dataclass(frozen=True, kw_only=True)
class RoutedFacts(LayerFacts):
    """Of one layer with several adapters.

    Attributes:
        ranks: Of each adapter.
        trained: The gate was made from data; else it holds the adapters' own directions.
        hard: A token takes one adapter; else a mean of them.
        mixed: An input of one label takes shares of several adapters.
    """

    ranks: Annotated[list[Rank], Field(min_length=2, max_length=64)]
    trained: Flag = False
    hard: Flag = True
    mixed: Flag = False


@dataclass(frozen=True, kw_only=True)
class RoutingFacts(Facts):
    """Of a module with adapters that are chosen by the input.

    Attributes:
        layers: Those with adapters.
        adapters: Their names, in the order of their numbers.
        base_sha256: Hash of the weights that they are for.
        share: Numbers of the adapters and gates, as a share of the model's.
    """

    layers: Layers[RoutedFacts]
    adapters: list[Text] = field(default_factory=list)
    base_sha256: Text | None = None
    share: Number = 0.0
