"""What a rounded weight can still gain from the second moments of its inputs, whatever algorithm rounded it.

Codes: one column after the other moves to the level that is best given all others, until a pass changes little:
cyclic coordinate descent, as in "QuantEase: Optimization-based Quantization for Language Models" (Behdin et al.,
2023). Scales: for given codes the best scales of a row are the solution of a small linear system. Neither step can
raise the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import damped, damping_of, flat_weight
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.packed.grid import Packed
from compresskit.ops.quantize.ranges import Codes
from compresskit.ops.quantize.two_level_codes import codes_of

_PIECE = 64
"""Columns moved before the gradient of all others is updated."""
_MARGIN = 1e-3
"""Of a level: a code changes only where the other level is nearer by more than this."""


def refine(
    weight: Tensor, packed: Packed, moments: Moments, *, rounds: int = 2, damping: float | None = None
) -> Packed:
    """Lower the output error of a rounded weight; its zero points and its layout stay.

    Args:
        weight: What the packed weight stands for, ``(outputs, …)``.
        packed: The rounded weight.
        moments: Of the layer's inputs.
        rounds: Times that scales and codes take turns.
        damping: As in :func:`~compresskit.ops.quantize.gptq.quantize_gptq`.
    """
    target, gram = flat_weight(weight, moments), damped(moments.gram, damping_of(moments, damping))
    found = codes_of(packed, len(target))
    for _ in range(rounds):
        found.refit(target, gram)
        _descend(found, target, gram)
    return found.packed(weight)


def _descend(found: Codes, target: Tensor, gram: Tensor) -> None:
    """One pass over the columns; changes the codes in place."""
    columns = target.shape[2]
    size = found.codes.shape[2] // found.scales.shape[2]
    slope = (found.centred(columns) * found.spread(columns) - target) @ gram
    curve = gram.diagonal(dim1=1, dim2=2)
    for start in range(0, columns, _PIECE):
        end = min(start + _PIECE, columns)
        # Columns lie one after the other here, since each is read and written whole; in the weight, rows do.
        near, codes = slope[..., start:end].mT.contiguous(), found.codes[..., start:end].mT.contiguous()
        moved = torch.zeros_like(near)
        for at, column in enumerate(range(start, end)):
            scale, old = found.scales[..., column // size], codes[:, at]
            wish = old - near[:, at] / (curve[:, column, None] * scale)
            new = wish.round().clamp_(0, found.grid.largest)
            stay = (wish - old).abs() <= (wish - new).abs() + _MARGIN
            change = torch.where(stay, 0.0, new - old)
            old += change
            moved[:, at] = change * scale
            near.baddbmm_(gram[:, start:end, column, None], moved[:, at, None])
        found.codes[..., start:end] = codes.mT
        if end < columns:
            slope[..., end:].baddbmm_(moved.mT, gram[:, start:end, end:])
