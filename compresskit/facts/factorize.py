"""What is recorded of factorized layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from compresskit.facts import Facts, Flag, LayerFacts, Layers, Number, Ranks, Shape, Text

Kind = Literal["svd", "tucker", "spatial", "cp"]
RANKS: dict[Kind, int] = {"svd": 1, "tucker": 2, "spatial": 1, "cp": 1}
"""How many ranks each kind has."""


@dataclass(frozen=True, kw_only=True)
class FactorFacts(LayerFacts):
    """Of one layer that was taken apart.

    Attributes:
        kind: The decomposition: ``svd``, ``tucker`` …
        ranks: As many as :data:`RANKS` says.
        shape: Of the original weight.
        conv1d: Whether it is a Conv1D of transformers in the original.
        share: Weights left.
        energy: Squared singular values left, as the data weigh them.
    """

    kind: Kind
    ranks: Ranks
    shape: Shape
    conv1d: Flag = False
    share: Number
    energy: Number

    def __post_init__(self) -> None:
        """Refuse ranks that the kind has not."""
        if len(self.ranks) != RANKS[self.kind]:
            raise ValueError(f"{self.kind} with ranks {self.ranks}: expected {RANKS[self.kind]}")


@dataclass(frozen=True, kw_only=True)
class MergedFacts(LayerFacts):
    """Of one layer whose factors were multiplied out.

    Attributes:
        conv1d: Whether it is a Conv1D of transformers in the original.
    """

    conv1d: Flag = False


@dataclass(frozen=True, kw_only=True)
class FitFacts:
    """Of a fit by least squares.

    Attributes:
        before: The output's distance from the original without it.
        after: And with what was kept.
        kept: What that is.
    """

    before: Number
    after: Number
    kept: Text


@dataclass(frozen=True, kw_only=True)
class FactorizeFacts(Facts):
    """Of a module whose layers were factorized, or merged again.

    Attributes:
        layers: Those layers.
        merged: Whether factors were multiplied out.
        share: What is left of all layers, by unit.
        refit: What the fit gained.
        timed: Pairs: share of the multiply-accumulates, and of the time it took.
    """

    layers: Layers[FactorFacts | MergedFacts]
    merged: Flag = False
    share: Mapping[Text, Number] = field(default_factory=dict)
    refit: FitFacts | None = None
    timed: list[list[Number]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a mixture."""
        if any(isinstance(fact, MergedFacts) != self.merged for fact in self.layers.values()):
            raise ValueError("merged layers beside factorized ones")
