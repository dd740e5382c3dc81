"""How much of each layer's weight a rank keeps: what there is to gain before anything is tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.factorize.candidates import break_even

ENERGIES = (0.90, 0.95, 0.99)
BUDGETS = (0.8, 0.6, 0.4)


@torch.no_grad()
def spectrum(module: nn.Module) -> list[dict[str, Any]]:
    """The singular values of every Linear layer and ungrouped convolution, as JSON data, in the module's order.

    A convolution counts as the matrix ``(outputs, inputs · window)``: what two layers make of it, the first with the
    window and fewer channels, the second 1×1.

    Args:
        module: In floating point; not run.

    Returns:
        For each layer ``name``, ``shape`` of the matrix, ``rank`` (its largest possible), ``effective_rank``,
        ``rank_for`` (energy in percent to the smallest rank that keeps it), ``break_even`` (the rank at which two
        factors take as much as the layer), and ``kept`` (budget in percent to the energy that its rank keeps, 0 to 1).
    """
    found = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == 1):
            weight = layer._parameters.get("weight")
            if weight is not None and weight.numel() and weight.is_floating_point() and weight.isfinite().all():
                found.append({"name": name, **_of(weight.flatten(1))})
    return found


def _of(matrix: Tensor) -> dict[str, Any]:
    outputs, inputs = matrix.shape
    values = torch.linalg.svdvals(matrix.double())
    even = break_even(outputs, inputs)
    kept = shares(values)
    return {
        "shape": [outputs, inputs],
        "rank": len(values),
        "effective_rank": round(effective_rank(values), 2),
        "rank_for": {f"{100 * e:.0f}": rank_for(kept, e) for e in ENERGIES},
        "break_even": round(even, 2),
        "kept": {f"{100 * b:.0f}": round(_kept(kept, int(b * even)), 4) for b in BUDGETS},
    }


def effective_rank(values: Tensor) -> float:
    """The exponential of the entropy of the singular values' distribution; 0 for a matrix of zeros.

    "The Effective Rank: A Measure of Effective Dimensionality" (Roy & Vetterli, 2007).

    Args:
        values: Singular values, 0 or more.
    """
    total = float(values.sum())
    if not total:
        return 0.0
    parts = values[values > 0] / total
    return math.exp(float(-(parts * parts.log()).sum()))


def shares(values: Tensor) -> list[float]:
    """The share of the energy (squared singular values) that each rank keeps, from rank 1 on."""
    energy = values.square()
    total = float(energy.sum())
    return (energy.cumsum(0) / total).tolist() if total else [1.0] * len(values)


def rank_for(kept: Sequence[float], energy: float) -> int:
    """The smallest rank that keeps a share of the energy."""
    return next((rank for rank, share in enumerate(kept, 1) if share >= energy - 1e-12), len(kept))


def _kept(kept: Sequence[float], rank: int) -> float:
    return kept[min(rank, len(kept)) - 1] if rank else 0.0
