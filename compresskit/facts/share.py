"""What is recorded of modules that share their weights."""

from __future__ import annotations

from dataclasses import dataclass

from compresskit.facts import Count, Facts, LayerFacts, Layers, Name, Number


@dataclass(frozen=True, kw_only=True)
class TiedFacts(LayerFacts):
    """Of one module that has the parameters of another.

    Attributes:
        owner: Name of that module.
        likeness: Cosine of both modules' weights before, -1 to 1.
    """

    owner: Name
    likeness: Number | None = None


@dataclass(frozen=True, kw_only=True)
class TieFacts(Facts):
    """Of a module some of whose parts share their parameters.

    Attributes:
        layers: Those that have the parameters of others.
        fitted: Layers whose shared weight was fitted to data.
    """

    layers: Layers[TiedFacts]
    fitted: Count = 0

    def __post_init__(self) -> None:
        """Refuse an owner that has its parameters from another."""
        for name, fact in self.layers.items():
            if fact.owner in self.layers:
                raise ValueError(f"'{name}' can't share the parameters of '{fact.owner}', which has others' itself")
