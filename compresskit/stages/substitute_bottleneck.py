"""``substitute.bottleneck``: layers through fewer channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from compresskit.facts import to_json
from compresskit.facts.substitute import BottleneckFacts, NarrowedFacts
from compresskit.stages.substitute_parts import SubstituteParts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.ops.substitute.parts import Parts

_WIDEST = 4608
"""Columns of a layer up to which its inputs' moments are taken: above, they take too much memory."""


class SubstituteBottleneck(SubstituteParts):
    """Replace convolutions by a 1×1 to fewer channels, a narrow convolution and a 1×1 back, fitted on `data`.

    Needs no labels. Linear layers and 1×1 convolutions become two narrow ones. `epochs` trains the result against the
    original.
    `factorize --method tucker` chooses the channels of each layer instead.
    """

    method: ClassVar[str] = "bottleneck"
    facts: ClassVar = NarrowedFacts
    became: ClassVar[str] = "bottlenecks"

    width: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="Width of the bottleneck: fraction of the layer's input or output channels, whichever are "
            "fewer. Rounded to a multiple of 8.",
        ),
    ] = 0.5

    def why_not(self, layer: nn.Module) -> str:
        """Why a layer can't be replaced; empty where it can."""
        from compresskit.ops.substitute.bottleneck import why_not, width_of

        return why_not(layer, width_of(layer, self.width))

    def made(self, layer: Any, columns: Tensor | None = None) -> Parts:
        """What replaces a layer."""
        from compresskit.ops.substitute.bottleneck import Bottleneck, width_of

        return Bottleneck(layer, width_of(layer, self.width)).fill(layer, columns)

    def moments(self, module: nn.Module, names: list[str], data: CalibrationData) -> dict[str, Tensor]:
        """Second moments of the inputs of layers that aren't too wide."""
        from compresskit.ops.prune.score import moments_of

        narrow = [n for n in names if module.get_submodule(n).get_parameter("weight")[0].numel() <= _WIDEST]
        return {name: found.gram[0] for name, found in moments_of(module, narrow, data).items()}

    def fact(self, layer: nn.Module) -> dict[str, Any]:
        """What is recorded of a layer."""
        from compresskit.ops.substitute.bottleneck import width_of

        width = width_of(layer, self.width)
        return to_json(BottleneckFacts(width=width)) | {"about": f"bottleneck of {width} channels"}

    @classmethod
    def replay(cls, module: nn.Module, facts: NarrowedFacts, tensors: Tensors) -> Tensors:
        """Put empty bottlenecks in the place of layers."""
        from compresskit.ops.substitute.bottleneck import replay

        replay(module, facts.layers)
        return tensors
