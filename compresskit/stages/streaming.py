"""Quantization without data of a module in memory, or of one whose weights stay on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.bundle import weights_metadata
from compresskit.checkpoint.shard_writer import SHARD, ShardWriter
from compresskit.model import Applied, Model
from compresskit.stage import Context, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from compresskit.ops.packed.grid import Grid, Packed
    from compresskit.ops.quantize.select import Selection
    from compresskit.ops.quantize.streamed import Parts


def quantized(
    stage: Stage,
    model: Model,
    ctx: Context,
    selection: Selection,
    algorithm: Callable[[Tensor, Grid], Packed],
    parts: Parts | None = None,
) -> tuple[Model, dict[str, Any], dict[str, str]]:
    """Quantize a module in place; where its weights are on disk, what ships of them is written on the way.

    Args:
        stage: Of which the header of the written files tells.
        model: Its body is a module.
        ctx: Its work folder takes what is written.
        selection: Which layers, and their grid.
        algorithm: Weight and grid to codes.
        parts: What is stored of a packed weight; None: as this program stores it.

    Returns:
        The model, and what :func:`~compresskit.ops.quantize.weights.quantize_module` does.

    Raises:
        CompressKitError: As there; the disk is full.
    """
    from compresskit.ops.quantize.weights import quantize_module

    if model.weights is None:
        return model, *quantize_module(model.module, selection, algorithm, ctx.progress, ranks=ctx.ranks)
    from compresskit.ops.quantize.streamed import StreamedWeights
    from compresskit.ops.quantize.weights import parts_of

    folder = ctx.work / "weights"
    folder.mkdir()
    card = model.card.after(Applied(stage.name(), stage.options()))
    writer = ShardWriter(folder, weights_metadata(card), SHARD)
    weights = StreamedWeights(model.module, model.weights, writer, parts or parts_of)
    facts, skipped = quantize_module(model.module, selection, algorithm, ctx.progress, weights, ctx.ranks)
    written = None if ctx.ranks.rank else weights.finish(model.half)
    return replace(model, weights=None, written=written), facts, skipped
