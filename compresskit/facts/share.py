"""What is recorded of modules that share their weights, or are made symmetric."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from compresskit.facts import Count, Facts, LayerFacts, Layers, Name, Number, Text


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


@dataclass(frozen=True, kw_only=True)
class MovedFacts:
    """How much the output changes under one move of the picture.

    Attributes:
        move: In words.
        before: Norm of the change over that of the output, mean over samples, before the stage.
        after: The same afterwards, training included.
        same_before: Share of the samples whose class stays, for scores of classes.
        same_after: The same afterwards.
    """

    move: Text
    before: Number
    after: Number
    same_before: Number | None = None
    same_after: Number | None = None


@dataclass(frozen=True, kw_only=True)
class SymmetrizeFacts(Facts):
    """Of a module whose output stays the same, or moves, when its picture is moved.

    Attributes:
        group: The moves.
        form: The outputs are averaged over them, or the kernels are symmetric.
        moves: What was measured of each, on samples or made-up pictures.
    """

    group: Literal["flip", "c2", "d2", "c4", "d4"]
    form: Literal["average", "tie"] = "average"
    moves: list[MovedFacts] = field(default_factory=list)
