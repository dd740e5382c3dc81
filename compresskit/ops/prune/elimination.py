"""Which units of a group the layers behind it can do without, when these layers are fitted again: backward elimination.

The error that is left after a least-squares refit is known for every set of inputs from their second moments alone.
Units go one by one, each time the one whose loss costs least after the best refit of the others: the optimal brain
surgeon (Hassibi & Stork, 1993) on whole blocks of columns, as "The Optimal BERT Surgeon" (Kurtic et al., 2022) and
"OSSCAR" (Meng et al., 2024) use it for structures; without OSSCAR's local search.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from compresskit.ops.calibration.gram import damped
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.prune.graph import Group

DAMPING = 1e-3


@torch.no_grad()
def eliminate(module: nn.Module, group: Group, moments: Mapping[str, Moments]) -> tuple[list[int], list[float]]:
    """Order in which the units of a group should go.

    Args:
        module: The model that the moments are of.
        group: Its members on the side ``in`` are what reads the units.
        moments: Of the inputs of those layers; one that is missing doesn't count.

    Returns:
        All units, the first to go first; and for each the error that its loss adds, as a share of what the layers that
        read it give (their mean square), summed over them: float, 0 or more.
    """
    readers = [
        _Reader(module.get_submodule(m.layer), m.places, moments[m.layer]) for m in group.of("in") if m.layer in moments
    ]
    left = list(range(group.units))
    order: list[int] = []
    added: list[float] = []
    while left and readers:
        cost = torch.stack([reader.costs(left) for reader in readers]).sum(0)
        at = int(cost.argmin())
        added.append(max(0.0, float(cost[at])))
        unit = left.pop(at)
        order.append(unit)
        for reader in readers:
            reader.remove(unit)
    return order + left, added + [0.0] * len(left)


class _Reader:
    """One layer that reads the units: its weight, refitted for the inputs that are left, and their inverse moments."""

    def __init__(self, layer: nn.Module, places: tuple[tuple[int, ...], ...], moments: Moments) -> None:
        weight = layer.get_parameter("weight").double()
        groups, columns, _ = moments.gram.shape
        self._weight = weight.reshape(groups, -1, columns)
        gram = damped(moments.gram.double(), DAMPING)
        self._inverse = torch.linalg.inv(gram)
        energy = torch.einsum("gok,gkl,gol->", self._weight, moments.gram.double(), self._weight)
        self._energy = max(float(energy), 1e-30)
        channels = columns // weight[0, 0].numel()
        window = columns // channels
        # Columns of a unit in each group of a convolution, which loses the same of all its groups.
        self._columns = [
            torch.tensor([c * window + k for c in sorted({p % channels for p in part}) for k in range(window)])
            for part in places
        ]

    def costs(self, units: list[int]) -> Tensor:
        """What the loss of each unit alone adds to the error."""
        found = torch.zeros(len(units), dtype=torch.float64)
        widths = [len(self._columns[unit]) for unit in units]
        # Units with the same number of columns are solved at once: single calls would cost more than the arithmetic.
        for width in set(widths):
            rows = [row for row, own in enumerate(widths) if own == width]
            at = torch.stack([self._columns[units[row]] for row in rows])
            block = self._inverse[:, at[:, :, None], at[:, None, :]]
            part = self._weight[:, :, at].permute(0, 2, 3, 1)
            found[rows] = (torch.linalg.solve(block, part) * part).sum((0, 2, 3))
        return found / self._energy

    def remove(self, unit: int) -> None:
        """Take a unit out, and refit the weight of the others."""
        at = self._columns[unit]
        rows = self._inverse[:, at]
        step = torch.linalg.solve(rows[:, :, at], rows)
        self._weight = self._weight - self._weight[:, :, at] @ step
        self._inverse = self._inverse - rows.mT @ step
        # Exactly gone: what rounding leaves there would grow from step to step.
        self._weight[:, :, at] = 0
        self._inverse[:, at], self._inverse[:, :, at] = 0, 0


@torch.no_grad()
def refitted(module: nn.Module, group: Group, moments: Mapping[str, Moments], kept: list[int]) -> dict[str, Tensor]:
    """The weights of the layers that read a group, fitted for some of its units; columns of the others are zero.

    A layer without moments just loses its columns.
    """
    found: dict[str, Tensor] = {}
    stay = set(kept)
    for member in group.of("in"):
        layer = module.get_submodule(member.layer)
        weight = layer.get_parameter("weight").detach()
        turned = isinstance(layer, _ConvTransposeNd)
        local = weight.shape[0 if turned else 1]
        lost = sorted({p % local for unit, part in enumerate(member.places) if unit not in stay for p in part})
        if member.layer in moments:
            window = weight[0, 0].numel()
            gone = torch.tensor([c * window + k for c in lost for k in range(window)], dtype=torch.long)
            columns = torch.ones(local * window, dtype=torch.bool)
            columns[gone] = False
            gram = damped(moments[member.layer].gram.double(), DAMPING)
            flat = weight.double().reshape(len(gram), -1, local * window)
            new = torch.zeros_like(flat)
            inner = gram[:, columns][:, :, columns]
            new[:, :, columns] = torch.linalg.solve(inner, (flat @ gram[:, :, columns]).mT).mT
            found[member.layer] = new.reshape(weight.shape).to(weight.dtype)
        else:
            new = weight.clone()
            new.index_fill_(0 if turned else 1, torch.tensor(lost, dtype=torch.long), 0.0)
            found[member.layer] = new
    return found
