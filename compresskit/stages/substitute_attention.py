"""``substitute.attention``: attention at less than the square of the length."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import UsageError
from compresskit.facts import to_json
from compresskit.facts.substitute import AttentionFacts, SparseFacts
from compresskit.kinds import SUBSTITUTE
from compresskit.model import Model
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Exclude, Include, TargetLatency
from compresskit.stages.whole_model import ChangedFlow

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.shrinking import CalibrationData

_SAMPLES = 4
Layers = dict[str, AttentionFacts]
_SIZES = {"window": "window", "linformer": "rank", "performer": "features"}
"""The option that says how much each pattern attends to."""


class SubstituteAttention(ChangedFlow):
    """Replace the attention of encoders by attention that costs less for long inputs.

    It pays only for inputs of many hundred tokens, so the time is measured at the length of `data`. The accuracy
    usually needs training: `epochs` trains the result against the original.
    """

    kind: ClassVar = SUBSTITUTE
    method: ClassVar[str] = "attention"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = SparseFacts

    pattern: Annotated[
        Literal["window", "linformer", "performer", "linear"],
        Field(
            description="What a token attends to: the tokens around it and the first ones (window); a few weighted "
            "sums of all tokens, for inputs of one length (linformer); all tokens, with softmax estimated from random "
            "features (performer) or replaced by elu + 1 (linear)."
        ),
    ] = "window"
    window: Annotated[int, Field(ge=2, le=1 << 14, description="Tokens on either side, for `pattern` window.")] = 64
    everywhere: Annotated[
        int | None,
        Field(
            ge=0,
            le=64,
            description="First tokens that attend to all tokens, and all tokens to them. (those that are the same in "
            "all samples, such as class tokens)",
        ),
    ] = None
    rank: Annotated[int, Field(ge=1, le=1 << 14, description="Number of sums, for `pattern` linformer.")] = 64
    features: Annotated[
        int, Field(ge=1, le=1 << 14, description="Number of random features of each head, for `pattern` performer.")
    ] = 64
    count: Annotated[
        int | None,
        Field(
            ge=1,
            description="Number of layers to replace: those whose replacement changes the output least; with "
            "`target_latency`, the most. (all)",
        ),
    ] = None
    target_latency: TargetLatency = None
    guard: Annotated[
        Literal["size", "latency"],
        Field(
            description="Condition for replacing: none (size), or a lower time of the whole model, measured on this "
            "machine (latency)."
        ),
    ] = "latency"
    transfer: Annotated[
        float,
        Field(
            ge=0,
            description="Weight of attention transfer in training, relative to the loss of the outputs: each replaced "
            "layer learns the output of the original's layer. 0 turns it off.",
        ),
    ] = 1.0
    include: Include = ()
    exclude: Exclude = ()

    @model_validator(mode="after")
    def _transfers(self) -> SubstituteAttention:
        if self.transfer != type(self).model_fields["transfer"].default and not self.epochs:
            raise UsageError("`transfer` is for training, and `epochs` is 0", "give `epochs` N")
        return self

    def run(self, model: Model, ctx: Context) -> Model:
        """Replace the attention of a module in place.

        Raises:
            UsageError: A glob matches nothing, the pattern doesn't fit the model's inputs, or a target can't be met.
            InputError: No attention was recognized, or the model gets no faster.
        """
        from compresskit.ops.globs import check_globs, left_out
        from compresskit.ops.macs import calling
        from compresskit.ops.substitute.sparse import find, replay

        module = model.module.eval()
        original = copy.deepcopy(module) if self.epochs else None
        data = calibration_data(model, ctx, samples=_SAMPLES, size=_SAMPLES, rows=_SAMPLES)
        with calling(module):
            found = find(module, data)
            check_globs(found, (*self.include, *self.exclude))
            skipped = {name: why for name in found if (why := left_out(name, self.include, self.exclude))}
            layers = {name: self._fact(fact, model) for name, fact in found.items() if name not in skipped}
            if not layers:
                raise UsageError("`include` and `exclude` leave no layer of attention")
            here = _Here(model, data, ctx, max(fact.tokens for fact in found.values()), len(found))
            layers, facts = self._chosen(here, layers)
            replay(module, layers, ctx.seed)
        skipped |= {name: "other layers change the output less" for name in found if name not in {**layers, **skipped}}
        facts["layers"] = {name: to_json(fact) | {"about": self._about(fact)} for name, fact in layers.items()}
        facts["notes"] = self._notes(layers, len(found), facts, model)
        if ctx.data is not None:
            facts["calibration"] = calibration(ctx.data, _SAMPLES)
        trained = {} if original is None else self._trained(model, original, tuple(layers), ctx)
        facts["notes"] += trained.pop("notes", [])
        return self.recorded(model, facts | trained, skipped)

    def _trained(self, model: Model, original: nn.Module, names: tuple[str, ...], ctx: Context) -> dict[str, Any]:
        """What training the model against the original recorded."""
        if not self.transfer:
            return self.train(model.module, model.card, ctx, teacher=original)
        from compresskit.ops.distill.features import Tapped
        from compresskit.train.task import Task
        from compresskit.train.teaching import guided

        student, teacher = Tapped(model.module, names), Tapped(original, names)
        trained = self.train(
            student,
            model.card,
            ctx,
            teacher=teacher,
            loss=lambda task: guided(task, teacher, Task.against_teacher, self.transfer),
        )
        trained["notes"].append(f"attention transfer: {len(names)} layers learnt the outputs of the original's")
        return trained

    def _fact(self, known: AttentionFacts, model: Model) -> AttentionFacts:
        if self.pattern == "window":
            everywhere = known.everywhere if self.everywhere is None else self.everywhere
            return replace(known, window=self.window, everywhere=min(everywhere, 2 * self.window), tokens=0, width=0)
        known = replace(known, everywhere=0)
        if self.pattern == "performer":
            return replace(known, kernel="softmax", features=self.features, tokens=0)
        if self.pattern == "linear":
            return replace(known, kernel="elu", tokens=0, width=0)
        if any(isinstance(size, str) for spec in model.card.inputs for size in spec.shape[1:]):
            raise UsageError("`pattern` linformer is for inputs of one length, and this model takes any", "use window")
        if self.rank > known.tokens:
            raise UsageError(f"`rank` {self.rank}: the model has {known.tokens} tokens", "give a smaller `rank`")
        return replace(known, rank=self.rank, width=0)

    def _chosen(self, here: _Here, layers: Layers) -> tuple[Layers, dict[str, Any]]:
        """The layers that are replaced, and what was measured for them."""
        if self.target_latency is None and self.count is not None and self.count > len(layers):
            raise UsageError(f"`count` {self.count}: the model has {len(layers)} layers of attention", "give less")
        if self.count is not None or self.target_latency is not None:
            layers = here.ranked(layers, self.count)
        smaller = "" if self.pattern == "linear" else f"a smaller `{_SIZES[self.pattern]}`"
        if self.target_latency is not None:
            return here.in_time(
                layers, self.target_latency, f"give more than that, or {smaller or 'another `pattern`'}"
            )
        if self.guard == "size":
            return layers, {}
        time = here.time(layers)
        hint = f"longer inputs{smaller and f', or with {smaller}'}"
        self.check_faster(time, f"this attention gains nothing with {here.tokens} tokens", hint)
        return layers, {"time": round(time, 4)}

    def _about(self, fact: AttentionFacts) -> str:
        if fact.window:
            first = f", and the first {fact.everywhere}" if fact.everywhere else ""
            return f"attends to {fact.window} tokens on either side{first}"
        if fact.kernel == "softmax":
            return f"attends to all tokens by {fact.features} random features of softmax"
        if fact.kernel == "elu":
            return "attends to all tokens by elu + 1"
        return f"attends to {fact.rank} sums of {fact.tokens} tokens"

    def _notes(self, layers: Layers, found: int, facts: dict[str, Any], model: Model) -> list[str]:
        many = f"{len(layers)} of {found}" if len(layers) < found else f"{found}"
        notes = [f"{many} attention layers: each token {self._about(next(iter(layers.values())))}"]
        return notes + self.use_notes(model, facts.get("time"), "this attention")

    @classmethod
    def replay(cls, module: nn.Module, facts: SparseFacts, tensors: Tensors) -> Tensors:
        """Replace the attention of a freshly built module."""
        from compresskit.ops.substitute.sparse import replay

        replay(module, facts.layers)
        return tensors


@dataclass(frozen=True)
class _Here:
    """A model with attention that can be replaced.

    Attributes:
        tokens: Of its inputs.
        found: Its layers of attention.
    """

    model: Model
    data: CalibrationData
    ctx: Context
    tokens: int
    found: int

    def ranked(self, layers: Layers, most: int | None) -> Layers:
        """The layers from the one whose replacement changes the model's output least on; at most so many."""
        from compresskit.ops.substitute.sparse import change_of_each

        changes = change_of_each(self.model.module, layers, self.data, self.ctx.seed)
        return {name: layers[name] for name in sorted(layers, key=changes.__getitem__)[:most]}

    def in_time(self, ranked: Layers, target: float, hint: str) -> tuple[Layers, dict[str, Any]]:
        """The fewest layers for a share of the time."""
        from compresskit.stages.shared_latency import Choices, within_latency

        def at(share: float) -> tuple[Layers, float]:
            count = min(len(ranked), max(1, math.ceil((1 - share) * self.found - 1e-6)))
            return dict(list(ranked.items())[:count]), 1 - count / self.found

        least = 1 - len(ranked) / self.found
        choices = Choices(least, at, self.built, f"most layers replaced ({len(ranked)})", hint)
        inputs = self.model.card.inputs
        layers, timed = within_latency(self.model.module, inputs, target, self.ctx, choices, sequence=self.tokens)
        times = [[round(n, 4) for n in pair] for pair in timed]
        return layers, {"timed": times, "time": times[-1][1]}

    def built(self, layers: Layers) -> nn.Module:
        """A copy of the model with such attention."""
        from compresskit.ops.substitute.sparse import replay

        module = copy.deepcopy(self.model.module)
        replay(module, layers, self.ctx.seed)
        return module

    def time(self, layers: Layers) -> float:
        """Share of the original's time."""
        from compresskit.stages.shared_latency import share_of_model

        inputs = self.model.card.inputs
        return share_of_model(self.model.module, self.built(layers), inputs, self.ctx, sequence=self.tokens)
