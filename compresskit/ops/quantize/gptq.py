"""GPTQ: rounding column by column, each error spread over the columns that are still to come.

"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (Frantar et al., 2022). The error
of a column goes where the inputs' second moments say that it can be compensated. A group's range is searched when its
turn comes, on the weights as corrected by then.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import damping_of, flat_weight, inverse_factor
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.packed.grid import Grid, Packed
from compresskit.ops.quantize.two_level_codes import empty_codes

_PIECE = 128
"""Columns rounded before the rest of the weight is updated."""


def quantize_gptq(
    weight: Tensor, grid: Grid, moments: Moments, *, damping: float | None = None, order: bool = False
) -> Packed:
    """Quantize a weight with the second moments of its inputs.

    With a gram of ``c · I`` the result is that of :func:`~compresskit.ops.quantize.rtn.quantize_rtn`.

    Args:
        weight: ``(outputs, …)``; the outputs of a convolution lie group after group.
        grid: Bits, group size and symmetry.
        moments: Of the layer's inputs.
        damping: Added to the gram's diagonal, as a fraction of its mean; None takes more the fewer positions
            were seen for a column. Grows tenfold until the gram can be factored.
        order: Quantize the columns with the largest inputs first (act-order). Ranges are then searched before
            anything is rounded, since a group is made of neighbours in the stored order.

    Returns:
        The packed weight.

    Raises:
        InputError: The weight or the moments hold NaN or Inf.
    """
    target = flat_weight(weight, moments)
    parts, _, columns = target.shape
    _, size, _ = grid.layout(columns)
    diagonal = moments.gram.diagonal(dim1=1, dim2=2)
    turns, gram, work = torch.arange(columns).expand(parts, -1), moments.gram, target.clone()
    found = empty_codes(target, grid)
    if order:
        for start in range(0, columns, size):
            found.fit(target, start, diagonal)
        turns = diagonal.argsort(dim=1, descending=True, stable=True)
        gram = gram.gather(1, turns.unsqueeze(2).expand_as(gram)).gather(2, turns.unsqueeze(1).expand_as(gram))
        work = target.gather(2, turns.unsqueeze(1).expand_as(target))
    factor = inverse_factor(gram, damping_of(moments, damping))
    part = torch.arange(parts).unsqueeze(1)
    for start, end in _pieces(columns, size):
        # Columns lie one after the other here, since each is read and written whole; in the weight, rows do.
        near = work[..., start:end].mT.contiguous()
        errors, codes = torch.empty_like(near), torch.empty_like(near)
        for column in range(start, end):
            at = column - start
            if not order and column % size == 0:
                work[..., column:end] = near[:, at:].mT
                found.fit(work, column, diagonal)
            codes[:, at], value = found.rounded(near[:, at], turns[:, column])
            errors[:, at] = (near[:, at] - value) / factor[:, column, column, None]
            near[:, at:].baddbmm_(factor[:, column, column:end, None], errors[:, at, None], alpha=-1)
        found.codes.mT[part, turns[:, start:end]] = codes
        if end < columns:
            work[..., end:].baddbmm_(errors.mT, factor[:, start:end, end:], alpha=-1)
    return found.packed(weight)


def _pieces(columns: int, size: int) -> Iterator[tuple[int, int]]:
    """Runs of columns of at most about ``_PIECE``; a group begins where a run begins, or within one it fits in."""
    if size <= _PIECE:
        step = size * (_PIECE // size)
        yield from ((start, min(start + step, columns)) for start in range(0, columns, step))
        return
    for first in range(0, columns, size):
        last = min(first + size, columns)
        yield from ((start, min(start + _PIECE, last)) for start in range(first, last, _PIECE))
