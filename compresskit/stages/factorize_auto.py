"""``factorize.auto``: what fits each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.stage import Searched
from compresskit.stages.factorize_base import Factorize

if TYPE_CHECKING:
    from compresskit.facts.factorize import Kind


class FactorizeAuto(Factorize):
    """Choose the factorization of each layer for a given budget, energy, rank or latency.

    Linear layers and 1×1 convolutions become two matrices. Other convolutions become Tucker-2 or a k×1 and a 1×k
    convolution, whichever has the smaller error. With unlabelled `data`, each weight error is weighted by its effect on
    the model's output, ranks are chosen by measured output errors, and the layers are refitted. `epochs` trains the
    result against the original.
    """

    method: ClassVar[str] = "auto"
    searched: ClassVar = Searched(("cnn", "linear", "tiny"))
    kinds: ClassVar[tuple[Kind, ...]] = ("svd", "tucker", "spatial")
