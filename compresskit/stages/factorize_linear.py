"""``factorize.svd``, ``whitened`` and ``fisher``: two matrices in the place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.stages.factorize_base import Factorize

if TYPE_CHECKING:
    from compresskit.facts.factorize import Kind
    from compresskit.ops.factorize.candidates import Weighting


class FactorizeSvd(Factorize):
    """Linear layers and 1×1 convolutions by the truncated singular value decomposition of their weights."""

    method: ClassVar[str] = "svd"
    kinds: ClassVar[tuple[Kind, ...]] = ("svd",)
    weighting: ClassVar[Weighting] = "plain"


class FactorizeWhitened(Factorize):
    """The same, truncated so that each layer's own output loses least on `data` (SVD-LLM)."""

    method: ClassVar[str] = "whitened"
    kinds: ClassVar[tuple[Kind, ...]] = ("svd",)
    weighting: ClassVar[Weighting] = "inputs"
    needs: ClassVar = ("calibration",)


class FactorizeFisher(Factorize):
    """The same, truncated so that the model's outputs lose least: inputs and output gradients both count.

    The gradients need no labels: they are of the model's own outputs.
    """

    method: ClassVar[str] = "fisher"
    kinds: ClassVar[tuple[Kind, ...]] = ("svd",)
    weighting: ClassVar[Weighting] = "both"
    needs: ClassVar = ("calibration",)
