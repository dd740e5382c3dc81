"""How much of a model structured pruning could touch: the groups that ``prune`` itself would find, and prove."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from compresskit.errors import CompressKitError
from compresskit.ops.macs import count_macs
from compresskit.ops.prune.cost import Cost
from compresskit.ops.prune.counted_graph import EFFORT
from compresskit.ops.prune.rewrite import conv1d_to_linear, rewrite_shortcuts
from compresskit.ops.prune.structured import PrunePlan, PruneSettings, plan
from compresskit.ops.shrinking import CalibrationData
from compresskit.stage import silent

_EFFORT = EFFORT // 6
"""Most comparisons to find the groups: about twenty seconds."""
_LARGEST = 500_000_000
"""Parameters above which nothing is tried: the trial needs copies."""


@dataclass(frozen=True)
class Prunable:
    """What structured pruning could touch.

    Attributes:
        parameters: Share in layers whose channels can be cut on one side at least, 0 to 1.
        macs: The same of the multiply-accumulates.
        least_parameters: Share that stays when every width is the narrowest.
        least_macs: The same of the multiply-accumulates.
        groups: Groups of channels that can be cut.
        layers: Names of the layers they touch.
        kept: Layers whose outputs can't be cut, with the reason.
    """

    parameters: float
    macs: float
    least_parameters: float
    least_macs: float
    groups: int
    layers: tuple[str, ...]
    kept: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "known": True,
            "parameters": round(self.parameters, 4),
            "macs": round(self.macs, 4),
            "least": {"parameters": round(self.least_parameters, 4), "macs": round(self.least_macs, 4)},
            "groups": self.groups,
            "layers": list(self.layers),
            "kept": self.kept,
        }


def prunable(module: nn.Module, data: CalibrationData) -> Prunable | str:
    """What structured pruning could touch, or why that isn't known.

    Args:
        module: In eval mode; a copy of it is tried.
        data: With an example to run it on; no data are needed.
    """
    if sum(p.numel() for p in module.parameters()) > _LARGEST:
        return "too large to try it on a copy"
    try:
        work = copy.deepcopy(module).eval()
        conv1d_to_linear(work)
        rewrite_shortcuts(work, data.run)
        found = plan(work, data, PruneSettings("l2", "isomorphic", effort=_EFFORT), silent)
        return _shares(work, found, data)
    except CompressKitError as error:
        return error.message
    except Exception as error:  # the user's module, copied and run on an example that was made up
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _shares(module: nn.Module, found: PrunePlan, data: CalibrationData) -> Prunable:
    macs = count_macs(module, data.example)
    members = {m.layer for group in found.groups for m in group.members}
    own = {name: sum(p.numel() for p in module.get_submodule(name).parameters(recurse=False)) for name in members}
    costs = {unit: Cost(module, found.groups, counted) for unit, counted in (("params", None), ("macs", macs))}
    order = [name for name, _ in module.named_modules() if name in members]
    total = sum(p.numel() for p in module.parameters())
    return Prunable(
        sum(own.values()) / max(1, total),
        sum(macs.get(name, 0) for name in members) / max(1, sum(macs.values())),
        found.least(costs["params"]),
        found.least(costs["macs"]),
        len(found.groups),
        tuple(order),
        found.skipped,
    )
