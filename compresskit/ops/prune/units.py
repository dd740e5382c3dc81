"""Columns of a weight removed in units (a neuron, an attention head), the others making up for them.

"ZipLM: Inference-Aware Structured Pruning of Language Models" (Kurtić et al., 2023), its removal of structures: again
and again those go that cost the least once all others have compensated them; here some at a time, and without its
search over measured latencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import damped, damping_of, flat_weight
from compresskit.ops.calibration.moments import Moments

_STEPS = 64
"""Steps in which units are removed, at most: costs are recomputed after each."""


@torch.no_grad()
def prune_units(
    weight: Tensor, moments: Moments, size: int, keep: int, *, damping: float | None = None
) -> tuple[Tensor, list[int]]:
    """Zero the units of columns that are needed least, and fit the other columns anew.

    Args:
        weight: ``(outputs, inputs)`` of a Linear layer.
        moments: Of the layer's inputs.
        size: Columns of a unit; unit ``i`` is made of columns ``i · size`` to ``(i + 1) · size - 1``.
        keep: How many units stay, at least 1.
        damping: See :func:`~compresskit.ops.calibration.gram.damping_of`.

    Returns:
        The weight with zeros in the columns of units that go, and the numbers of the units that stay, ascending.

    Raises:
        InputError: The weight or the moments hold NaN or Inf.
    """
    work = flat_weight(weight, moments)[0].clone()
    target = work.clone()
    units = work.shape[1] // size
    gram = damped(moments.gram, damping_of(moments, damping))[0]
    inverse = torch.linalg.inv(gram.double()).float()
    left = list(range(units))
    step = -(-(units - keep) // _STEPS)
    while len(left) > keep:
        costs = _costs(work, inverse, size)
        costs[[unit for unit in range(units) if unit not in set(left)]] = torch.inf
        gone = costs.argsort(stable=True)[: min(step, len(left) - keep)].tolist()
        columns = columns_of(gone, size)
        solved = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])
        work -= work[:, columns] @ solved
        inverse -= inverse[:, columns] @ solved
        # What is gone is out of the system; a one keeps its part of the matrix invertible.
        inverse[columns], inverse[:, columns], work[:, columns] = 0.0, 0.0, 0.0
        inverse[columns, columns] = 1.0
        left = [unit for unit in left if unit not in set(gone)]
    stays = columns_of(left, size)
    found = torch.zeros_like(target)
    found[:, stays] = torch.linalg.solve(gram[stays][:, stays], gram[stays] @ target.T).T
    return found.to(weight.dtype), left


def _costs(weight: Tensor, inverse: Tensor, size: int) -> Tensor:
    """What the output loses by each unit once the other columns compensated it, ``(units,)``."""
    if size == 1:
        return weight.square().sum(0) / inverse.diagonal()
    units = weight.shape[1] // size
    blocks = torch.stack([inverse[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(units)])
    parts = weight.reshape(weight.shape[0], units, size).permute(1, 2, 0)
    found: Tensor = (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))
    return found


def columns_of(units: list[int], size: int) -> Tensor:
    """The columns of some units."""
    return (torch.tensor(units, dtype=torch.long).unsqueeze(1) * size + torch.arange(size)).flatten()
