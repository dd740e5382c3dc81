"""What is recorded of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from compresskit.facts import Count, Facts, Flag, Index, LayerFacts, Layers, Number, Pair, Shape, Text
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
