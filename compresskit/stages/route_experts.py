"""``route.experts``: mixtures of experts with fewer experts."""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import InputError, UsageError
from compresskit.facts.prune import WidthFacts
from compresskit.kinds import ROUTE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration
from compresskit.stages.fields import Samples
from compresskit.stages.recovery import Recovery

_BATCH = 16
_FEW = 32
"""Tokens of an expert below which its score says little."""


class RouteExperts(Recovery):
    """Leave out experts of a mixture of experts (Hugging Face folder): each layer keeps those that add the most.

    An expert adds the mean of its gate times the norm of its output over the tokens of `data` that are sent to it
    (REAP). The file and the memory get smaller. A token still goes through as many experts, so the speed stays the
    same where only these run. `epochs` trains the rest with the original as the teacher. transformers still loads the
    result.
    """

    kind: ClassVar = ROUTE
    method: ClassVar[str] = "experts"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = WidthFacts
    needs: ClassVar = ("calibration",)
    needs_no_replay: ClassVar[bool] = True  # config.json tells the number

    keep: Annotated[float, Field(gt=0, lt=1, description="Fraction of the experts of each layer to keep.")] = 0.5
    score: Annotated[
        Literal["reap", "total", "frequency", "random"],
        Field(
            description="Which experts stay: those with the largest mean of gate times norm of their output (reap), "
            "with the largest sum of it over all tokens (total), with the most tokens (frequency), or any (random)."
        ),
    ] = "reap"
    merge: Annotated[
        bool,
        Field(description="Average each expert that goes into the one that stays whose router row is most similar."),
    ] = False
    samples: Samples = 256

    @property
    def promises_speed(self) -> bool:
        """No: a token goes through as many experts as before."""
        return False

    def run(self, model: Model, ctx: Context) -> Model:
        """Cut a module in place.

        Raises:
            UsageError: There are no calibration data, or the model isn't of transformers.
            InputError: The data don't fit the model, or it has no mixture whose router is known.
        """
        from compresskit.ops.prune.config import check_config, with_sizes
        from compresskit.ops.route.mixtures import keep_experts, key_of, merging, router_of, used
        from compresskit.ops.structure.experts import mixtures
        from compresskit.stages.batches import batches_of, forward_of

        if ctx.data is None:
            raise UsageError("route `method` experts needs calibration data", "give `data` FILE")
        if model.card.arch.kind != "transformers":
            raise UsageError(
                "route `method` experts is for Hugging Face folders", "route `method` exits takes any module"
            )
        module, forward = model.module.eval(), forward_of(model.module, model.card.inputs)
        names = mixtures(module)
        key = key_of(module, names)
        before, top = getattr(module.config, key), getattr(module.config, "num_experts_per_tok", 1)
        count = max(round(before * self.keep), top)
        if count >= before:
            raise InputError(f"each token takes {top} of {before} experts: none can go", "lower `keep`")
        samples = min(self.samples, len(ctx.data))
        batches = batches_of(ctx.data, model.card.inputs, _BATCH, samples)
        found = used(module, batches, forward, ctx.progress)
        teacher = copy.deepcopy(module) if self.epochs else None
        layers: dict[str, Any] = {}
        for number, name in enumerate(names):
            use = found[name]
            scores = use.scores(self.score, ctx.seed + number)
            kept = sorted(scores.argsort(descending=True, stable=True)[:count].tolist())
            weights = merging(router_of(module, name), use, kept) if self.merge else None
            keep_experts(module, name, kept, weights)
            layers[name] = {"about": f"experts {', '.join(map(str, kept))} of {before}"}
        facts: dict[str, Any] = {
            "config": with_sizes(module, {key: count}),
            "layers": layers,
            "calibration": calibration(ctx.data, samples),
        }
        check_config(module, lambda target: forward(target, batches[0]))
        trained = self.train(module, model.card, ctx, teacher=teacher)
        facts["notes"] = [
            f"{count} of {before} experts of each of {len(names)} layers stay, chosen on {samples} samples of "
            f"{portable(ctx.data.name)}; smaller in the file and in memory; as fast as before where only the chosen "
            "experts run",
            *self._doubts({name: use.tokens.tolist() for name, use in found.items()}),
            *trained.pop("notes", []),
        ]
        return self.recorded(model, {**facts, **trained})

    def _doubts(self, tokens: dict[str, list[float]]) -> list[str]:
        """What a reader must know of the calibration."""
        rare = sum(count < _FEW for own in tokens.values() for count in own)
        every = sum(map(len, tokens.values()))
        if not rare:
            return []
        return [
            f"{rare} of {every} experts saw fewer than {_FEW} tokens of the calibration data: what they are for may be "
            "missing there, and the loss on other texts may be larger: give more and other `data`, or more `samples`"
        ]
