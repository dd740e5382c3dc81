"""``factorize.tucker``, ``spatial`` and ``cp``: convolutions as a few smaller ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.stages.factorize_base import Factorize

if TYPE_CHECKING:
    from compresskit.facts.factorize import Kind


class FactorizeTucker(Factorize):
    """Convolutions with fewer channels between two 1×1 convolutions (Tucker-2); one is left out where that is best."""

    method: ClassVar[str] = "tucker"
    kinds: ClassVar[tuple[Kind, ...]] = ("tucker",)


class FactorizeSpatial(Factorize):
    """Convolutions as a k×1 and a 1×k."""

    method: ClassVar[str] = "spatial"
    kinds: ClassVar[tuple[Kind, ...]] = ("spatial",)


class FactorizeCp(Factorize):
    """Convolutions as 1×1, k×1 and 1×k by channel, and 1×1 (CP, by tensorly: extra factorize)."""

    method: ClassVar[str] = "cp"
    packages: ClassVar[dict[str, str]] = {"tensorly": "factorize"}
    kinds: ClassVar[tuple[Kind, ...]] = ("cp",)
