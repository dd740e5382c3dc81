"""A student made from its teacher: fewer blocks, narrower layers."""

from __future__ import annotations

from compresskit.errors import InputError, UsageError
from compresskit.model import Model
from compresskit.stage import Context


def shallower(model: Model, depth: int, ctx: Context) -> Model:
    """The model with so many of its blocks: those without which the outputs on the data move most.

    Raises:
        UsageError: The model has no more blocks than that.
        InputError: It has no blocks that can be dropped.
    """
    from compresskit.ops.prune.depth import blocks_of
    from compresskit.stages.batches import forward_of, made_up
    from compresskit.stages.prune_depth import PruneDepth

    batch = made_up(model.card.inputs, 2, ctx.seed)
    count = len(blocks_of(model.module.eval(), batch, forward_of(model.module, model.card.inputs)))
    if depth >= count:
        raise UsageError(f"`student_depth` {depth}: {model.source} has {count} blocks", f"choose 1 to {count - 1}")
    return PruneDepth(drop=count - depth).run(model, ctx)


def narrower(model: Model, width: float, ctx: Context) -> Model:
    """The model with so large a share of its channels; of a transformer's neurons and attention heads.

    Raises:
        UsageError: Heads can't be shared out so.
        InputError: Nothing can be cut.
    """
    from compresskit.stages.prune_structured import PruneStructured
    from compresskit.stages.prune_width import PruneWidth

    gone = round(1 - width, 6)
    if model.card.arch.kind == "transformers":
        try:
            return PruneWidth(neurons=gone, heads=gone).run(model, ctx)
        except InputError:  # a config that can't say so, as BERT's
            return PruneWidth(neurons=gone, heads=0).run(model, ctx)
    return PruneStructured(ratio=gone, ranking="uniform").run(model, ctx)


def kept_blocks(model: Model) -> dict[str, str]:
    """The blocks of a model that :func:`shallower` made, each with the name it had before; empty for others."""
    last = next((a for a in reversed(model.card.history) if a.name == "prune.depth"), None)
    found: dict[str, str] = {}
    for holder, data in (last.facts["stacks"] if last else {}).items():
        for index, leaf in enumerate(data["kept"]):
            name = str(index) if leaf.isdigit() else leaf
            found[f"{holder}.{name}".removeprefix(".")] = f"{holder}.{leaf}".removeprefix(".")
    return found
