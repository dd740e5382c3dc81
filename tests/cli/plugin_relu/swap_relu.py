"""A package that brings a kind of stage of its own: one function, one class, and one entry point (see dist-info)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compresskit.errors import InputError
from compresskit.facts import Facts, LayerFacts, Number
from compresskit.kinds import Kind
from compresskit.model import Model
from compresskit.stage import Context, Stage

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors


def swap(module: nn.Module, cap: float) -> list[str]:
    """Put a Hardtanh from 0 to ``cap`` in the place of each ReLU; returns the layers' names."""
    from torch import nn

    found = [name for name, layer in module.named_modules() if isinstance(layer, nn.ReLU)]
    for name in found:
        module.set_submodule(name, nn.Hardtanh(0.0, cap))
    return found


@dataclass(frozen=True, kw_only=True)
class CapFacts(Facts):
    """What the card records.

    Attributes:
        cap: The largest output of a layer.
    """

    cap: Number


class SwapRelu(Stage):
    """Put a capped ReLU in the place of each ReLU.

    Its outputs have a known range, whatever the data.
    """

    kind: ClassVar = Kind(
        name="swap",
        summary="Put cheaper layers in the place of others.",
        changes_size=False,
        before_codes=True,
        only_tunes=False,
        quantizes=False,
    )
    method: ClassVar[str] = "relu"
    takes: ClassVar = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = CapFacts

    cap: Annotated[float, Field(gt=0, description="Largest output of a layer.")] = 6.0

    def run(self, model: Model, ctx: Context) -> Model:
        """Swap in place.

        Raises:
            InputError: There is no ReLU.
        """
        found = swap(model.module, self.cap)
        if not found:
            raise InputError(f"{model.source} has no ReLU")
        facts = CapFacts(
            layers={name: LayerFacts(about=f"Hardtanh from 0 to {self.cap:g}") for name in found},
            cap=self.cap,
            notes=[f"{len(found)} ReLU swapped"],
        )
        return self.recorded(model, facts)

    @classmethod
    def replay(cls, module: nn.Module, facts: CapFacts, tensors: Tensors) -> Tensors:
        """Swap again."""
        swap(module, facts.cap)
        return tensors
