"""``factorize.svd``, ``whitened`` and ``fisher``: two matrices in the place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.stages.factorize_base import Factorize

if TYPE_CHECKING:
    from compresskit.facts.factorize import Kind
    from compresskit.ops.factorize.candidates import Weighting


class FactorizeSvd(Factorize):
    """Truncated singular value decomposition of the weights of Linear layers and 1×1 convolutions."""

    method: ClassVar[str] = "svd"
    kinds: ClassVar[tuple[Kind, ...]] = ("svd",)
    weighting: ClassVar[Weighting] = "plain"


class FactorizeWhitened(Factorize):
    """SVD-LLM: truncated SVD that minimizes the error of each layer's output on `data`."""

    method: ClassVar[str] = "whitened"
    kinds: ClassVar[tuple[Kind, ...]] = ("svd",)
    weighting: ClassVar[Weighting] = "inputs"
    needs: ClassVar = ("calibration",)


class FactorizeFisher(Factorize):
    """Truncated SVD weighted by the layer's inputs and by the gradients of the model's outputs.

    The gradients come from the model's own outputs and need no labels.
    """

    method: ClassVar[str] = "fisher"
    kinds: ClassVar[tuple[Kind, ...]] = ("svd",)
    weighting: ClassVar[Weighting] = "both"
    needs: ClassVar = ("calibration",)
