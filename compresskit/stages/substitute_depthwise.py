"""``substitute.depthwise``: convolutions of each channel by itself, and a 1×1 behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from compresskit.facts import to_json
from compresskit.facts.substitute import DepthwiseFacts, SeparableFacts
from compresskit.stages.substitute_parts import SubstituteParts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.substitute.parts import Parts


class SubstituteDepthwise(SubstituteParts):
    """Replace convolutions by depthwise ones and a 1×1, made of their singular vectors and fitted on unlabelled `data`.

    The accuracy usually needs training: `epochs` trains the result against the original.
    """

    method: ClassVar[str] = "depthwise"
    facts: ClassVar = SeparableFacts
    became: ClassVar[str] = "depthwise"
    part: ClassVar[str] = "convolution"

    multiplier: Annotated[
        int,
        Field(
            ge=1,
            le=16,
            description="Depthwise multiplier: windows for each input channel, as that many depthwise convolutions.",
        ),
    ] = 2

    def why_not(self, layer: nn.Module) -> str:
        """Why a layer can't be replaced; empty where it can."""
        from compresskit.ops.substitute.depthwise import why_not

        return why_not(layer, self.multiplier)

    def made(self, layer: Any, columns: Tensor | None = None) -> Parts:
        """What replaces a convolution."""
        from compresskit.ops.substitute.depthwise import Depthwise

        return Depthwise(layer, self.multiplier).fill(layer)

    def fact(self, layer: nn.Module) -> dict[str, Any]:
        """What is recorded of a convolution."""
        about = f"depthwise, multiplier {self.multiplier}"
        return to_json(DepthwiseFacts(multiplier=self.multiplier)) | {"about": about}

    @classmethod
    def replay(cls, module: nn.Module, facts: SeparableFacts, tensors: Tensors) -> Tensors:
        """Put empty layers in the place of convolutions."""
        from compresskit.ops.substitute.depthwise import replay

        replay(module, facts.layers)
        return tensors
