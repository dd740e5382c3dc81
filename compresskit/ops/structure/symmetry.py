"""How much the output changes when a picture is flipped or turned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.share.moves import HALF, MIRROR, QUARTER, UPSIDE_DOWN, Move
from compresskit.ops.shrinking import CalibrationData

MOVES = (MIRROR, UPSIDE_DOWN, HALF, QUARTER)


@torch.no_grad()
def symmetry(
    module: nn.Module, data: CalibrationData, batches: int, moves: Sequence[Move] = MOVES
) -> list[dict[str, Any]]:
    """The relative change of the output by each move of the picture.

    Args:
        module: In eval mode.
        data: With batches.
        batches: That are looked at.
        moves: Those that need square pictures are left out for others.

    Returns:
        A row a move: ``move``, ``error`` (norm of the change over that of the output, mean over samples; of an output
        that is a picture, after the move is undone) and, for scores of classes, ``same`` (share of samples whose class
        stays). Empty where the input isn't one picture.
    """
    given = data.batches[0]
    if len(given) != 1 or next(iter(given.values())).dim() != 4:
        return []
    (name,) = given
    found = []
    for move in moves:
        errors, same = list[Tensor](), list[Tensor]()
        for batch in data.batches[:batches]:
            x = batch[name]
            if move.transposed and x.shape[-1] != x.shape[-2]:
                continue
            plain = next(tensors_in(data.forward(module, batch)))
            moved = next(tensors_in(data.forward(module, {name: move(x)})))
            if plain.dim() == 4:
                plain = move(plain)
            away = (moved - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1).clamp_min(1e-12)
            errors.append(away)
            if data.scores and plain.dim() == 2:
                same.append(plain.argmax(1) == moved.argmax(1))
        if errors:
            row: dict[str, Any] = {"move": move.name, "error": float(f"{float(torch.cat(errors).mean()):.4g}")}
            found.append(row | ({"same": round(float(torch.cat(same).float().mean()), 4)} if same else {}))
    return found
