"""LoftQ: codes and an adapter that together begin as near to the weight as they can.

"LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models" (Li et al., 2023, arXiv:2310.08659), algorithm 1:
rounding what the adapter leaves, and a truncated SVD of what rounding leaves, take turns. The pair of least error over
all rounds is kept, as rounding again may also lose. PEFT has the same for CUDA only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compresskit.ops.packed.grid import Grid, Packed, dequantize


def quantize_loftq(
    weight: Tensor, grid: Grid, quantize: Callable[[Tensor, Grid], Packed], rank: int, rounds: int = 5
) -> tuple[Packed, Tensor, Tensor]:
    """Round a matrix and give the adapter that makes up for most of it.

    Args:
        weight: Floating point ``(out, in)``.
        grid: Of the codes.
        quantize: Rounds a weight to a grid.
        rank: Of the adapter, 1 to the lesser of both sizes.
        rounds: At least 1.

    Returns:
        The packed weight, ``down`` ``(rank, in)`` and ``up`` ``(out, rank)``, float32; ``up @ down`` is what it lacks.

    Raises:
        InputError: The weight holds NaN or Inf.
    """
    weight = weight.detach().float()
    down, up = weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(weight.shape[0], rank)
    best: tuple[float, Packed, Tensor, Tensor] | None = None
    for _ in range(rounds):
        packed = quantize(weight - up @ down, grid)
        left = weight - dequantize(packed)
        u, s, vh = torch.linalg.svd(left, full_matrices=False)
        root = s[:rank].sqrt()
        down, up = root.unsqueeze(1) * vh[:rank], u[:, :rank] * root
        error = float(s[rank:].square().sum())
        if best is None or error < best[0]:
            best = error, packed, down, up
    if best is None:
        raise ValueError("at least one round is needed")
    return best[1:]
