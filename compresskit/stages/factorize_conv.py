"""``factorize.tucker``, ``spatial`` and ``cp``: convolutions as a few smaller ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.stages.factorize_base import Factorize

if TYPE_CHECKING:
    from compresskit.facts.factorize import Kind


class FactorizeTucker(Factorize):
    """Tucker-2: a k×k convolution with fewer channels between two 1×1 convolutions.

    One of the 1×1 convolutions is left out if that is best.
    """

    method: ClassVar[str] = "tucker"
    kinds: ClassVar[tuple[Kind, ...]] = ("tucker",)


class FactorizeSpatial(Factorize):
    """Spatial factorization: a k×1 convolution followed by a 1×k convolution."""

    method: ClassVar[str] = "spatial"
    kinds: ClassVar[tuple[Kind, ...]] = ("spatial",)


class FactorizeCp(Factorize):
    """CP decomposition: 1×1, k×1 and 1×k per channel, and 1×1 convolutions. Needs the extra factorize (tensorly)."""

    method: ClassVar[str] = "cp"
    packages: ClassVar[dict[str, str]] = {"tensorly": "factorize"}
    kinds: ClassVar[tuple[Kind, ...]] = ("cp",)
