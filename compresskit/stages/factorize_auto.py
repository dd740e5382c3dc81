"""``factorize.auto``: what fits each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.stage import Searched
from compresskit.stages.factorize_base import Factorize

if TYPE_CHECKING:
    from compresskit.facts.factorize import Kind


class FactorizeAuto(Factorize):
    """Take each layer apart in the way that fits it: give a budget, an energy, a rank or a latency.

    Linear layers and 1×1 convolutions become two matrices, other convolutions a Tucker-2 or a k×1 with a 1×k, whichever
    loses less. With `data`, which needs no labels, errors count as the model's outputs feel them, ranks are split by
    what these outputs lose, and the layers are fitted again; `epochs` trains the result against the original.
    """

    method: ClassVar[str] = "auto"
    searched: ClassVar = Searched(("cnn", "linear", "tiny"))
    kinds: ClassVar[tuple[Kind, ...]] = ("svd", "tucker", "spatial")
