"""``route.experts``: mixtures of experts with fewer experts, and dense models with experts."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import InputError, UsageError
from compresskit.facts import to_json
from compresskit.facts.route import ExpertsFacts, SplitFacts
from compresskit.kinds import ROUTE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form, Searched, Tunable
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Exclude, Include, Samples
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.route.dense import Experts

_BATCH = 16
_DENSE = ("experts", "shared", "split", "include", "exclude")
"""Options of dense models."""
_MIXTURES = ("score", "merge")
"""Options of mixtures."""
_FEW = 32
"""Tokens of an expert below which its score says little."""


class RouteExperts(Recovery):
    """Leave out experts of a mixture of experts, or split the feed-forward layers of a dense model into experts.

    A mixture (Hugging Face folder) keeps the experts that add the most: the mean of the gate times the norm of the
    output over the tokens of `data` (REAP). The file and the memory get smaller, the speed stays the same. In a dense
    model the hidden units of each feed-forward layer that is sparse enough become shared units and experts, and each
    token goes through some of the experts. The file stays as large. `epochs` trains the result with the original as
    the teacher.
    """

    kind: ClassVar = ROUTE
    method: ClassVar[str] = "experts"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = ExpertsFacts
    needs: ClassVar = ("calibration",)
    searched: ClassVar = Searched(("causal-lm",), goal="size")

    keep: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="Fraction of the experts of each layer to keep; in a dense model the fraction of a layer's "
            "hidden units that a token goes through.",
        ),
        Tunable(0.5, 0.875, step=0.125),
    ] = 0.5
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
    experts: Annotated[
        int,
        Field(
            ge=2, le=256, description="Number of experts that a dense layer is split into, without the shared units."
        ),
    ] = 8
    shared: Annotated[
        float, Field(gt=0, lt=1, description="Fraction of a dense layer's hidden units that all tokens go through.")
    ] = 0.25
    split: Annotated[
        Literal["clustered", "random"],
        Field(
            description="Which hidden units of a dense layer are an expert: those that are strong for the same tokens "
            "(clustered), or any (random)."
        ),
    ] = "clustered"
    samples: Samples = 256
    include: Include = ()
    exclude: Exclude = ()

    @property
    def promises_speed(self) -> bool:
        """No: in a mixture a token goes through as many experts as before."""
        return False

    @property
    def promises_size(self) -> bool:
        """No: the routers of a dense model add to it."""
        return False

    def run(self, model: Model, ctx: Context) -> Model:
        """Change a module in place.

        Raises:
            UsageError: There are no calibration data, options are for the other kind of model, or a glob matches
                nothing.
            InputError: The data don't fit the model; it has neither a mixture whose router is known nor a dense layer
                that gains by experts.
        """
        from compresskit.ops.structure.experts import mixtures

        if ctx.data is None:
            raise UsageError("route `method` experts needs calibration data", "give `data` FILE")
        names = mixtures(model.module.eval())
        own, kind = (_DENSE, "dense models") if names else (_MIXTURES, "mixtures of experts")
        fields = type(self).model_fields
        if idle := next((name for name in own if getattr(self, name) != fields[name].default), None):
            raise UsageError(f"`{idle}` is for {kind}", "remove it")
        return self._shrunk(model, ctx, names) if names else self._routed(model, ctx)

    def _routed(self, model: Model, ctx: Context) -> Model:
        """A dense model with experts."""
        from compresskit.ops.route.dense import Wanted, add_experts
        from compresskit.ops.shrinking import ShrinkSettings

        if self.shared >= self.keep:
            raise UsageError(f"`shared` {self.shared:g} leaves no experts of `keep` {self.keep:g}", "give less")
        module = model.module
        data = calibration_data(model, ctx, samples=self.samples, size=_BATCH, rows=2)
        teacher = copy.deepcopy(module) if self.epochs else None
        wanted = Wanted(self.keep, self.shared, self.experts, self.split == "random")
        settings = ShrinkSettings(include=self.include, exclude=self.exclude, seed=ctx.seed)
        found = add_experts(module, data, wanted, settings, ctx.progress)
        trained = self.train(module, model.card, ctx, teacher=teacher)
        facts = {
            "layers": {name: to_json(fact) for name, fact in found.layers.items()},
            "distance": {kind: float(f"{value:.4g}") for kind, value in found.distance.items()},
            "calibration": calibration(ctx.data, self.samples),  # type: ignore[arg-type]
            **trained,
            "notes": [*self._found(model, found), *trained.get("notes", [])],
        }
        return self.recorded(model, facts, found.skipped)

    def _found(self, model: Model, found: Experts) -> list[str]:
        """What a reader must know of a dense model with experts."""
        layers = found.layers.values()
        share = sum((f.shared + f.top * f.size) / (f.shared + f.experts * f.size) for f in layers) / len(layers)
        notes = [
            f"{len(layers)} feed-forward layers have experts: a token goes through {100 * share:.0f} % of their hidden "
            "units; the file is as large as before",
            "change of the output on held-out samples, before any training: {clustered:.3g} with clustered experts, "
            "{random:.3g} with random ones (mean of 3 draws), {always:.3g} with as many units always on".format(
                **found.distance
            ),
        ]
        if found.distance["always"] <= found.distance["clustered"]:
            notes.append("units that are always on do as well here: `prune` leaves the others out, which is smaller")
        if not self.epochs:
            notes.append("no training was done, `epochs` N trains the result")
        if model.card.arch.kind == "transformers":
            notes.append("transformers alone cannot load these layers; compresskit can")
        return notes

    def _shrunk(self, model: Model, ctx: Context, names: list[str]) -> Model:
        """A mixture with fewer experts."""
        from compresskit.ops.prune.config import check_config, with_sizes
        from compresskit.ops.route.mixtures import keep_experts, key_of, merging, router_of, used
        from compresskit.stages.batches import batches_of, forward_of

        if ctx.data is None:
            raise TypeError("data are needed")
        if model.card.arch.kind != "transformers":
            raise UsageError(
                "experts of a mixture can be left out in Hugging Face folders", "route `method` exits takes any module"
            )
        module, forward = model.module, forward_of(model.module, model.card.inputs)
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

    @classmethod
    def replay(cls, module: nn.Module, facts: ExpertsFacts, tensors: Tensors) -> Tensors:
        """Put experts without values into a freshly built module; of a mixture config.json tells the number."""
        from compresskit.ops.route.feed_forward import replay

        replay(module, [(name, fact) for name, fact in facts.layers.items() if isinstance(fact, SplitFacts)])
        return tensors
