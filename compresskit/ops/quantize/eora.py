"""Low-rank repair of a rounded weight: a small float16 term that makes up for what rounding loses.

"EoRA: Fine-tuning-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation" (Liu et al., 2024): the
best low-rank term is that of the error in the space of the layer's inputs, where directions that inputs rarely take
weigh little. Codes and term take turns here, each rounding what the other leaves, as in "LoftQ" (Li et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compresskit.ops.calibration.gram import damped
from compresskit.ops.calibration.moments import Moments
from compresskit.ops.packed.grid import Packed, dequantize

Repair = tuple[Tensor, Tensor]
_DAMPING = 1e-3


def low_rank(error: Tensor, rank: int, gram: Tensor | None) -> Repair:
    """The term of a rank that makes up for most of an error of a weight.

    Args:
        error: Original less rounded weight, float32 ``(out, in)``.
        rank: Of the term; at most that of the error.
        gram: Mean of ``x xᵀ`` of the inputs, ``(in, in)``; None weighs all directions alike (plain SVD).

    Returns:
        ``(repair_in (rank, in), repair_out (out, rank))``, float16: the term is ``repair_out @ repair_in``.
    """
    rank = min(rank, *error.shape)
    if gram is None:
        left, values, right = torch.linalg.svd(error, full_matrices=False)
        root = values[:rank].sqrt()
        return _halves(root.unsqueeze(1) * right[:rank], left[:, :rank] * root)
    level, basis = torch.linalg.eigh(damped(gram.unsqueeze(0), _DAMPING)[0])
    stretch = level.clamp_min(1e-30).sqrt()
    left, values, right = torch.linalg.svd((error @ basis) * stretch, full_matrices=False)
    inward = (right[:rank] / stretch) @ basis.mT
    outward = left[:, :rank] * values[:rank]
    size = (outward.norm(dim=0) / inward.norm(dim=1).clamp_min(1e-30)).sqrt()  # both factors of one size
    return _halves(inward * size.unsqueeze(1), outward / size.clamp_min(1e-30))


def _halves(inward: Tensor, outward: Tensor) -> Repair:
    return inward.to(torch.float16).contiguous(), outward.to(torch.float16).contiguous()


def repaired(
    weight: Tensor, rank: int, moments: Moments | None, round_: Callable[[Tensor], Packed], turns: int = 2
) -> tuple[Packed, Repair]:
    """Round a weight together with its repair.

    Args:
        weight: float32 ``(out, in)``.
        rank: Of the repair.
        moments: Of the inputs; None for a repair without data.
        round_: Rounds a weight.
        turns: Times that the repair is made; each but the first starts from codes of what the last one left.
    """
    gram = None if moments is None else moments.gram[0]
    packed = round_(weight)
    repair = low_rank(weight - dequantize(packed), rank, gram)
    for _ in range(turns - 1):
        packed = round_(weight - term(repair))
        repair = low_rank(weight - dequantize(packed), rank, gram)
    return packed, repair


def term(repair: Repair) -> Tensor:
    """The repair as a float32 matrix ``(out, in)``."""
    inward, outward = repair
    return outward.float() @ inward.float()
