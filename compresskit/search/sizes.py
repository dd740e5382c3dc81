"""How small a candidate can be at best, known from shapes before anything of it is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compresskit.model import Model
    from compresskit.ops.estimates.sizes import Inventory

_SURE = 0.97
"""Share of a reckoned size that no file was found below."""
_EIGHT = ("quantize.int8-static", "quantize.smoothquant", "quantize.int8-dynamic")


def inventory_of(model: Model) -> Inventory | None:
    """What the file of a model is made of; None where it has no module."""
    from compresskit.ops.estimates import modules

    return None if isinstance(model.body, Path) else modules.inventory_of(model.body, {})


def least_bytes(inventory: Inventory, steps: Sequence[Mapping[str, Any]]) -> int:
    """Bytes that a candidate takes at least; 0 where that isn't known, as of all that is cut.

    Args:
        inventory: Of the original.
        steps: Of the candidate's recipe.
    """
    if len(steps) != 1:
        return 0
    method, options = next(iter(steps[0].items()))
    if method in _EIGHT:
        return int(_SURE * inventory.eight().bytes)
    bits = {"quantize.auto": "target-bits", "quantize.rtn": "bits", "quantize.palette": "bits"}.get(method)
    if bits is None or options.get(bits) is None or options.get("include") or options.get("exclude"):
        return 0
    weights = sum(math.prod(weight.shape) for weight in inventory.weights)
    return int(_SURE * (inventory.rest - inventory.folded + weights * float(options[bits]) / 8))
