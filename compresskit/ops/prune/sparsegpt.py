"""SparseGPT: weights go column by column, and those still to come make up for each.

"SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (Frantar & Alistarh, 2023). How many weights
each run of columns loses follows from the whole layer's scores, where the paper takes the same share of each; so with
moments of ``c · I`` the result is that of magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import damping_of, flat_weight, inverse_factor
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.prune.masks import Pattern, kept, lowest

_PIECE = 128
"""Columns worked on before the rest of the weight is updated, about."""


@torch.no_grad()
def prune_sparsegpt(weight: Tensor, pattern: Pattern, moments: Moments, *, damping: float | None = None) -> Tensor:
    """The weight with zeros, and with the other weights moved to make up for them.

    Args:
        weight: ``(outputs, inputs, …)``; the outputs of a convolution lie group after group.
        pattern: Which share; groups are chosen when their turn comes, on the weights as corrected by then.
        moments: Of the layer's inputs.
        damping: See :func:`~compresskit.ops.calibration.gram.damping_of`.

    Raises:
        InputError: The weight or the moments hold NaN or Inf.
    """
    target = flat_weight(weight, moments)
    columns = target.shape[2]
    turns = _inputs_last(weight, columns) if pattern.of else torch.arange(columns)
    work = target[..., turns].clone()
    factor = inverse_factor(moments.gram[:, turns][..., turns], damping_of(moments, damping))
    costs = factor.diagonal(dim1=1, dim2=2).unsqueeze(1)
    step = max(pattern.of, _PIECE // pattern.of * pattern.of) if pattern.of else _PIECE
    share = kept((work / costs).abs(), Pattern(pattern.sparsity)) if not pattern.of else None
    for start in range(0, columns, step):
        end = min(start + step, columns)
        stays = torch.ones_like(work[..., start:end], dtype=torch.bool)
        if share is not None:
            scores = (work[..., start:end] / costs[..., start:end]).abs()
            count = int(share[..., start:end].logical_not().sum())
            stays = lowest(scores.reshape(1, -1), count).logical_not().reshape(stays.shape)
        errors = torch.empty_like(work[..., start:end])
        for column in range(start, end):
            if pattern.of and column % pattern.of == 0:
                group = slice(column, column + pattern.of)
                scores = (work[..., group] / costs[..., group]).abs()
                few = lowest(scores.flatten(0, 1), pattern.of - pattern.kept)
                stays[..., column - start : column - start + pattern.of] = few.logical_not().reshape(scores.shape)
            value = work[..., column]
            error = value.where(~stays[..., column - start], 0.0) / factor[:, column, column, None]
            errors[..., column - start] = error
            work[..., column:end] -= error.unsqueeze(2) * factor[:, column, None, column:end]
        work[..., start:end].mul_(stays)  # exactly zero, not what is left of a subtraction
        if end < columns:
            work[..., end:] -= errors @ factor[:, start:end, end:]
    found = torch.empty_like(work)
    found[..., turns] = work
    return found.reshape(weight.shape).to(weight.dtype)


def _inputs_last(weight: Tensor, columns: int) -> Tensor:
    """The columns in the order of groups: a convolution's inputs beside each other, one place of its window a time."""
    return torch.arange(columns).reshape(weight.shape[1], -1).T.flatten()
