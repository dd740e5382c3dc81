"""``prune.depth``: whole blocks go."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import UsageError, listing
from compresskit.facts.prune import DepthFacts
from compresskit.kinds import PRUNE
from compresskit.model import Model
from compresskit.stage import Chosen, Context, Form, Searched, Tunable
from compresskit.stages.batches import calibration
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.calibration.activation_stream import Batch, Forward
    from compresskit.ops.prune.depth import Block

_BATCH = 32
_SEQUENCE = 8


class PruneDepth(Recovery):
    """Drop whole blocks (transformer layers, residual blocks) whose removal changes the outputs on `data` the least.

    The result is smaller and faster. transformers still loads a pruned Hugging Face folder. `epochs` trains the rest on
    `data` with the unpruned model as the teacher.
    """

    kind: ClassVar = PRUNE
    method: ClassVar[str] = "depth"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = DepthFacts
    searched: ClassVar = Searched(("cnn",), {"samples": 256})

    drop: Annotated[int | None, Field(ge=1, description="Number of blocks to drop."), Tunable(1, 3)] = None
    blocks: Annotated[
        tuple[str, ...],
        Field(description="Drop the blocks whose name matches this glob instead of ranking them on data. Repeatable."),
    ] = ()
    ranking: Annotated[
        Literal["output", "influence"],
        Field(
            description="Ranking of blocks. output: error of the model's output without the block, recomputed after "
            "each drop. influence: change from a block's input to its output, computed once; for models "
            "with many blocks."
        ),
    ] = "output"
    stand_in: Annotated[
        Literal["auto", "1x1", "3x3", "linear"] | None,
        Field(
            description="Put a layer in the place of each dropped block, fitted on `data` as by substitute `method` "
            "collapse; blocks are ranked by what is lost with it."
        ),
    ] = None
    samples: Annotated[int, Field(ge=1, description="Number of samples for the ranking.")] = 128

    def check_options(self) -> None:
        """Refuse to guess how many blocks.

        Raises:
            UsageError: Nothing says how many are to go, or two options do.
        """
        if self.drop is None and not self.blocks:
            raise UsageError("no target is given. Give `drop` N or `blocks` GLOB", "for example `drop` 2")
        if self.drop is not None and self.blocks:
            raise UsageError("`drop` and `blocks`: give one of them")
        if self.stand_in is not None and self.ranking != "output":
            raise UsageError("`stand_in` ranks blocks by the model's output", "remove `ranking`")

    def choose(self, model: Model, ctx: Context) -> Chosen:
        """This stage, or the one that puts layers in the place of blocks.

        Raises:
            UsageError: The options don't say which blocks, or there are no data to fit layers on.
            InputError: A glob is given, and the model has no blocks.
        """
        self.check_options()
        if self.stand_in is None:
            return Chosen((self,))
        from compresskit.stages.substitute_collapse import SubstituteCollapse

        count = self.drop or len(self._named(model, ctx))
        shared = {name: getattr(self, name) for name in (*Recovery.model_fields, "stand_in", "samples")}
        return Chosen((SubstituteCollapse(count=count, include=self.blocks, guard="size", **shared),))

    def _named(self, model: Model, ctx: Context) -> list[str]:
        """The blocks that the globs name.

        Raises:
            UsageError: A glob matches none.
        """
        from compresskit.ops.globs import check_globs, matches
        from compresskit.ops.prune.depth import blocks_of
        from compresskit.stages.batches import forward_of, made_up

        batch = made_up(model.card.inputs, 2, ctx.seed, sequence=_SEQUENCE)
        names = [b.name for b in blocks_of(model.module.eval(), batch, forward_of(model.module, model.card.inputs))]
        check_globs(names, self.blocks)
        return [name for name in names if matches(name, self.blocks)]

    def run(self, model: Model, ctx: Context) -> Model:
        """Drop blocks of a module in place.

        Raises:
            UsageError: Neither or both ways of saying which, no data to rank by, or nothing would be left.
            InputError: The model has no blocks that can be dropped.
        """
        from compresskit.ops.prune.config import check_config, with_fewer_layers
        from compresskit.ops.prune.depth import blocks_of, drop_proven
        from compresskit.stages.batches import batches_of, forward_of, made_up

        if self.stand_in is not None:
            return self.choose(model, ctx).stages[0].run(model, ctx)
        self.check_options()
        if self.drop is not None and ctx.data is None:
            raise UsageError("ranking the blocks needs data", "give `data` FILE, or `blocks` GLOB")
        module, forward = model.module.eval(), forward_of(model.module, model.card.inputs)
        batches = [made_up(model.card.inputs, 2, ctx.seed, sequence=_SEQUENCE)]
        facts: dict[str, Any] = {}
        if ctx.data is not None and self.drop is not None:
            count = min(self.samples, len(ctx.data))
            batches = batches_of(ctx.data, model.card.inputs, _BATCH, count)
            facts = {"calibration": calibration(ctx.data, count)}
        blocks = blocks_of(module, batches[0], forward)
        gone, known = self._chosen(module, blocks, batches, forward, model, ctx)
        teacher = copy.deepcopy(module) if self.epochs else None
        stacks = drop_proven(module, blocks, gone, batches[0], forward)
        if model.card.arch.kind == "transformers":
            facts["config"] = {}
            for data in stacks.values():
                facts["config"] |= with_fewer_layers(module, data["of"], [int(leaf) for leaf in data["kept"]])
            check_config(module, lambda target: forward(target, batches[0]))
        facts |= {"stacks": stacks, "layers": {name: {"about": "dropped", **known.get(name, {})} for name in gone}}
        facts["notes"] = [
            f"dropped {len(gone)} of {len(blocks)} blocks: {listing(gone, 12)}",
            *_of_ranking(facts, known),
        ]
        trained = self.train(module, model.card, ctx, teacher=teacher)
        facts["notes"] += trained.pop("notes", [])
        facts |= trained
        kept = {block.name: "kept" for block in blocks if block.name not in gone}
        return self.recorded(model, facts, kept)

    def _chosen(
        self,
        module: nn.Module,
        blocks: list[Block],
        batches: list[Batch],
        forward: Forward,
        model: Model,
        ctx: Context,
    ) -> tuple[list[str], dict[str, dict[str, float]]]:
        """The blocks to drop, and what was measured of each block."""
        from compresskit.ops.globs import check_globs, matches
        from compresskit.ops.prune.depth import distances, influences

        names = [block.name for block in blocks]
        if self.drop is None:
            check_globs(names, self.blocks)
            gone = [name for name in names if matches(name, self.blocks)]
            _check_left(len(gone), names)
            return gone, {}
        _check_left(self.drop, names)
        if self.ranking == "influence":
            found = influences(module, blocks, batches, forward, ctx.progress)
            gone = sorted(names, key=found.__getitem__)[: self.drop]
            return gone, {name: {"influence": _short(value)} for name, value in found.items()}
        scores = model.card.task in ("classification", "causal-lm")
        gone = []
        known: dict[str, dict[str, float]] = {}
        for _ in range(self.drop):
            found = distances(module, blocks, gone, batches, forward, scores=scores, progress=ctx.progress)
            known |= {name: {"distance": _short(value)} for name, value in found.items()}
            gone.append(min(found, key=found.__getitem__))
        return gone, known

    @classmethod
    def replay(cls, module: nn.Module, facts: DepthFacts, tensors: Tensors) -> Tensors:
        """Take the dropped blocks out of a freshly built module."""
        from compresskit.ops.prune.depth import replay

        replay(module, facts)
        return tensors


def _check_left(count: int, names: list[str]) -> None:
    """Some block must stay.

    Raises:
        UsageError: None would.
    """
    if count >= len(names):
        raise UsageError(f"{count} blocks can't be dropped of {len(names)}: {listing(names)}", "leave at least one")


def _of_ranking(facts: dict[str, Any], known: dict[str, dict[str, float]]) -> list[str]:
    if "calibration" not in facts:
        return []
    what = next(iter(next(iter(known.values()))))
    told = {"distance": "output error without each block", "influence": "influence of each block"}[what]
    values = ", ".join(f"{name} {value[what]:g}" for name, value in known.items())
    about = facts["calibration"]
    return [f"{told}, on {about['samples']} samples of {about['data']}: {values}"]


def _short(value: float) -> float:
    return float(f"{value:.3g}")
