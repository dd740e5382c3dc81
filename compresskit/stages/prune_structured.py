"""``prune.structured``: whole channels go."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import UsageError, listing
from compresskit.facts import to_json
from compresskit.facts.prune import StructuredFacts
from compresskit.kinds import PRUNE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form, Searched, Tunable
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Exclude, Include, Refit, TargetLatency
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.prune.structured import PrunePlan, PruneSettings, Unit
    from compresskit.ops.shrinking import CalibrationData

_BATCH = 64
_TARGETS = ("target_macs", "target_params", "target_latency", "ratio")
_MANY_KEPT = 20_000
"""Kept channels above which they aren't recorded one by one."""


_NAMES = {"macs": "multiply-accumulates", "params": "parameters"}


class PruneStructured(Recovery):
    """Remove whole channels. The model gets smaller and faster in every runtime. Needs a target or a ratio.

    With `data`, channels are ranked by the error of the layers after them, and these layers are refitted by least
    squares. `epochs` trains the result with the original as the teacher.
    """

    kind: ClassVar = PRUNE
    method: ClassVar[str] = "structured"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = StructuredFacts
    searched: ClassVar = Searched(("cnn", "tiny"), {"samples": 1024})

    target_macs: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Target: fraction of the multiply-accumulates to keep."),
        Tunable(0.4, 0.95, step=0.05),
    ] = None
    target_params: Annotated[
        float | None, Field(gt=0, lt=1, description="Target: fraction of the parameters to keep.")
    ] = None
    target_latency: TargetLatency = None
    ratio: Annotated[float | None, Field(gt=0, lt=1, description="Fraction of the channels to remove.")] = None
    importance: Annotated[
        Literal["reconstruction", "l1", "l2", "bn-scale", "activation", "taylor", "hessian"] | None,
        Field(
            description="Importance of a channel. reconstruction: error of the next layers without the channel, "
            "after a least-squares refit. (with `data`: reconstruction, else l2)"
        ),
    ] = None
    ranking: Annotated[
        Literal["measured", "global", "isomorphic", "uniform"] | None,
        Field(
            description="Comparison of layers. measured: output error when one layer alone gets narrower; global: "
            "importance over all layers; isomorphic: importance among layers of the same structure; "
            "uniform: the same fraction everywhere. (with `data`: measured, else isomorphic)"
        ),
    ] = None
    round_to: Annotated[
        int, Field(ge=1, le=256, description="Widths are multiples of this number, because kernels are slow on others.")
    ] = 8
    include: Include = ()
    exclude: Exclude = ()
    refit: Refit = True
    samples: Annotated[int, Field(ge=1, description="Number of samples for ranking and refit.")] = 512
    steps: Annotated[
        int, Field(ge=1, le=100, description="Number of pruning steps, each followed by an equal part of `epochs`.")
    ] = 1
    time_limit: Annotated[
        float | None,
        Field(
            gt=0,
            description="Time limit in seconds for the analysis of coupled channels. (a limit on its steps)",
        ),
    ] = None

    @model_validator(mode="after")
    def _one_target(self) -> PruneStructured:
        if len(given := self._given()) > 1:
            raise UsageError(f"{' and '.join(given)}: prune takes one target", "give one of them")
        if self.steps > 1 and self.epochs < self.steps:
            raise UsageError(
                f"`steps` {self.steps} with `epochs` {self.epochs}: training belongs between the steps",
                f"give `epochs` {self.steps} or more",
            )
        return self

    def _given(self) -> list[str]:
        return [f"`{name}`" for name in _TARGETS if getattr(self, name) is not None]

    def check_options(self) -> None:
        """Refuse to guess a target.

        Raises:
            UsageError: Nothing says how much is to go.
        """
        if not self._given():
            known = ", ".join(f"`{name}`" for name in _TARGETS)
            raise UsageError(f"no target is given. Give one of {known}", "for example `target_macs` 0.5")

    def run(self, model: Model, ctx: Context) -> Model:
        """Cut channels of a module in place.

        Raises:
            UsageError: A target can't be met, a glob matches nothing, or data are needed.
            InputError: Nothing can be cut, or the data don't fit.
        """
        import copy

        from compresskit.ops.prune.replay import facts_of, widths
        from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d, rewrite_shortcuts
        from compresskit.ops.prune.structured import amounts

        self.check_training_data(ctx)
        module, data = model.module.eval(), self._data(model, ctx)
        original = copy.deepcopy(module) if self.epochs or self.target_latency else module
        base = amounts(module, data)
        conv1d = conv1d_to_linear(module)
        rewritten = rewrite_shortcuts(module, data.run)
        before = widths(module)
        found = _Found(base)
        for step in range(1, self.steps + 1):
            self._step(step, module, original, data, model, ctx, found)
        facts: dict[str, Any] = {"layers": facts_of(module, before, conv1d), **found.facts}
        if rewritten:
            facts["rewritten"] = {name: [to_json(made) for made in all_of] for name, all_of in rewritten.items()}
        if sum(map(len, found.kept.values())) <= _MANY_KEPT:
            facts["kept"] = found.kept
        now = amounts(module, data)
        linear_to_conv1d(module, conv1d)
        facts["share"] = {unit: round(now[unit] / base[unit], 4) for unit in now if base[unit]}
        facts["notes"] = [*self._notes(facts, ctx), *found.notes]
        if model.card.arch.kind == "transformers":
            facts["notes"].append(
                "transformers alone cannot load layers of different widths; compresskit can. `method` width keeps "
                "one width for all layers"
            )
        if ctx.data is not None:
            facts["calibration"] = calibration(ctx.data, self.samples)
        return self.recorded(model, facts, found.skipped)

    def _step(
        self,
        step: int,
        module: nn.Module,
        original: nn.Module,
        data: CalibrationData,
        model: Model,
        ctx: Context,
        found: _Found,
    ) -> None:  # fmt: skip
        """Cut once, fit, and train for this step's part of the epochs."""
        import copy

        from compresskit.ops.prune.structured import apply

        made = self._plan(module, data, ctx, first=step == 1)
        unit, target = self.aim()
        share = target ** (step / self.steps)
        if self.target_latency is not None:
            from compresskit.ops.prune.cut import cut
            from compresskit.stages.shared_latency import Choices, within_latency

            def build(kept: dict[str, list[int]]) -> nn.Module:
                smaller = copy.deepcopy(module)
                cut(smaller, made.groups, kept)
                return smaller

            cost = made.cost("macs", found.base, data.example)
            choices = Choices(
                made.least(cost),
                lambda s: made.at(s, cost),
                build,
                "narrowest widths",
                "give more than that, or `round_to` 1",
            )
            kept, timed = within_latency(original, model.card.inputs, share, ctx, choices)
            found.facts["timed"] = [[round(n, 4) for n in pair] for pair in timed]
            found.notes.append(
                f"one sample took {timed[-1][1]:.3f} of the original's time under onnxruntime when it was cut to "
                f"{timed[-1][0]:.3f} of its MACs"
            )
        else:
            if unit not in found.base:
                found.base[unit] = made.cost(unit, {}, data.example).base
            kept = made.at(share, made.cost(unit, found.base, data.example))[0]
        found.skipped = made.skipped
        found.cut(made, kept)
        fitted = apply(module, made, kept, data, ctx.progress)
        if fitted:
            found.facts["refit"] = fitted
        epochs = self.epochs // self.steps + (self.epochs % self.steps if step == self.steps else 0)
        if epochs:
            folder = self.checkpoint / f"step-{step}" if self.checkpoint and self.steps > 1 else self.checkpoint
            part = self.model_copy(update={"epochs": epochs, "checkpoint": folder})
            told = part.train(module, model.card, ctx, teacher=original)
            prefix = f"step {step}: " if self.steps > 1 else ""
            found.notes += [prefix + note for note in told["notes"]]
            # One curve over all steps: what the stage trained is what the last step left.
            earlier = found.facts.get("training", {}).get("curve", [])
            curve = [
                *earlier,
                *({**point, "epoch": point["epoch"] + len(earlier)} for point in told["training"]["curve"]),
            ]
            found.facts["training"] = told["training"] | {"curve": curve, "epochs": len(curve)}

    def _plan(self, module: nn.Module, data: CalibrationData, ctx: Context, *, first: bool) -> PrunePlan:
        """What can be cut and what it costs, which is the same for every target: of the whole model found once."""
        from torch import nn

        from compresskit.ops.prune.structured import plan

        settings = self.settings(ctx)
        if not first:
            return plan(module, data, settings, ctx.progress)

        def found() -> PrunePlan:
            # Without the module, which is about to be cut.
            return replace(plan(module, data, settings, ctx.progress), module=nn.Identity())

        kept: PrunePlan = ctx.once(f"{self.name()} {self.samples} {settings}", found)
        return replace(kept, module=module)

    def _notes(self, facts: dict[str, Any], ctx: Context) -> list[str]:
        share = facts["share"]
        left = " and ".join(
            f"{100 * share[unit]:.1f} % of the {name}" for unit, name in _NAMES.items() if unit in share
        )
        notes = [f"{left} remain; widths are multiples of {self.round_to}"]
        if ctx.data is not None:
            notes.append(
                f"channels were ranked on {min(self.samples, len(ctx.data))} samples of {portable(ctx.data.name)}"
            )
        if "refit" in facts and not self.epochs:
            fitted = facts["refit"]
            again = ", batch normalization was re-estimated" if fitted["kept"] == "recalibrated" else ""
            notes.append(
                f"layers were refitted by least squares{again}: the output error fell from "
                f"{fitted['before']:.3g} to {fitted['after']:.3g}; no training was done, `epochs` N trains the result"
                if fitted["kept"] != "cut"
                else "the least-squares refit was skipped because it did not reduce the output error: more "
                "`samples` may help"
            )
        elif not self.epochs:
            notes.append("nothing was trained or refitted: `data` enables the refit, `epochs` N trains")
        if facts.get("rewritten"):
            notes.append(
                "zero-padded shortcuts were first converted exactly to 1×1 convolutions: "
                f"{listing(list(facts['rewritten']))}"
            )
        return notes

    def settings(self, ctx: Context) -> PruneSettings:
        """The options as the algorithm takes them."""
        from compresskit.ops.prune.structured import PruneSettings

        known = ctx.data is not None
        return PruneSettings(
            self.importance or ("reconstruction" if known else "l2"),
            self.ranking or ("measured" if known else "isomorphic"),
            self.time_limit, multiple=self.round_to, include=self.include, exclude=self.exclude, refit=self.refit,
            seed=ctx.seed,
        )  # fmt: skip

    def aim(self) -> tuple[Unit, float]:
        """What is counted, and the share that may stay: of it, or of the latency."""
        if self.target_params is not None:
            return "params", self.target_params
        if self.ratio is not None:
            return "channels", 1 - self.ratio
        return "macs", self.target_macs or self.target_latency or 1.0

    def _data(self, model: Model, ctx: Context) -> CalibrationData:
        import torch

        data = calibration_data(model, ctx, samples=self.samples, size=_BATCH, rows=2, by_length=False)
        if ctx.data is None or not ctx.data.labelled or ctx.data.kind == "pairs":
            return data
        targets = [batch.targets for batch in ctx.data.batches(_BATCH, self.samples)]
        labels = [torch.from_numpy(t).long() for t in targets if t is not None and t.ndim == 1 and t.dtype.kind == "i"]
        return replace(data, labels=labels, scores=True) if len(labels) == len(data.batches) else data

    @classmethod
    def replay(cls, module: nn.Module, facts: StructuredFacts, tensors: Tensors) -> Tensors:
        """Give the layers of a freshly built module their new widths."""
        from compresskit.ops.prune.replay import replay

        replay(module, facts)
        return tensors


@dataclass
class _Found:
    """What the steps came to so far.

    Attributes:
        base: What the original has: MACs, parameters, and channels that can be cut.
        kept: First layer of a group to the original's channels that are left of it.
    """

    base: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)

    def cut(self, made: PrunePlan, kept: dict[str, list[int]]) -> None:
        """Note which channels stay, by their numbers in the original."""
        for group in made.groups:
            places = [p for unit in kept[group.name] for p in group.members[0].places[unit]]
            before = self.kept.get(group.name)
            if before is not None or len(kept[group.name]) < group.units:
                self.kept[group.name] = [before[p] for p in sorted(places)] if before else sorted(places)
