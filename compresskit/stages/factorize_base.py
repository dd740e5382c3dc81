"""What all ways to factorize share: targets, the plan, the guard, and what is said of the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import InputError, UsageError, listing
from compresskit.facts.factorize import FactorizeFacts
from compresskit.kinds import FACTORIZE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form, Tunable
from compresskit.stages.batches import calibration, labelled_data
from compresskit.stages.fields import Exclude, Include, Refit, Samples, TargetLatency
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.facts.factorize import Kind
    from compresskit.ops.factorize.candidates import FactorizeSettings, Unit, Weighting
    from compresskit.ops.factorize.plan import Choice, FactorizePlan

_BATCH = 32
_TARGETS = ("energy", "budget", "rank", "target_latency")
_NAMES = {"params": "weights", "macs": "multiply-accumulates"}
_ROUNDS = 5
"""How often a budget is split anew because some factors turned out to be no faster."""


class Factorize(Recovery):
    """Replaces layers by products of smaller layers."""

    kind: ClassVar = FACTORIZE
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = FactorizeFacts
    kinds: ClassVar[tuple[Kind, ...]]
    weighting: ClassVar[Weighting] = "both"
    """How errors count where there are data."""

    energy: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Fraction of the energy (squared singular values) to keep in each layer, weighted by the data.",
        ),
    ] = None
    budget: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="Target size: fraction of the weights of all Linear layers and convolutions to keep.",
        ),
        Tunable(0.4, 0.9, step=0.05),
    ] = None
    budget_of: Annotated[
        Literal["params", "macs"] | None,
        Field(description="Unit of `budget`: weights (params) or multiply-accumulates (macs). (params)"),
    ] = None
    rank: Annotated[int | None, Field(ge=1, description="Rank of every factorized layer.")] = None
    target_latency: TargetLatency = None
    guard: Annotated[
        Literal["size", "latency"] | None,
        Field(
            description="Condition for replacing a layer: fewer weights and multiply-accumulates (size), or also a "
            "lower time, measured per layer on this machine (latency). (size; latency with "
            "`target_latency`)"
        ),
    ] = None
    round_to: Annotated[
        int, Field(ge=1, le=256, description="Ranks are multiples of this number, because kernels are slow on others.")
    ] = 8
    include: Include = ()
    exclude: Exclude = ()
    refit: Refit = True
    samples: Samples = 256
    merge: Annotated[bool, Field(description="Merge the factors of a factorized MODEL back into dense layers.")] = False

    @model_validator(mode="after")
    def _one_target(self) -> Factorize:
        given = [f"`{name}`" for name in _TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: factorize takes one target", "give one of them")
        if self.merge and (given or self.epochs):
            raise UsageError(f"`merge` with {(given or ['`epochs`'])[0]}: factors are multiplied out, nothing else")
        if self.budget_of is not None and self.budget is None:
            raise UsageError("`budget_of` says what `budget` is a share of, and there is no `budget`")
        return self

    def check_options(self) -> None:
        """Refuse to guess a target.

        Raises:
            UsageError: Nothing says how much is to be kept.
        """
        if not self.merge and all(getattr(self, name) is None for name in _TARGETS):
            known = ", ".join(f"`{name}`" for name in _TARGETS)
            raise UsageError(f"no target is given. Give one of {known}", "for example `budget` 0.6")

    def run(self, model: Model, ctx: Context) -> Model:
        """Factorize layers of a module in place, or merge them.

        Raises:
            UsageError: The target can't be met, a glob matches nothing, a rank is above a matrix's, or the model is
                quantized already.
            InputError: The model has nothing to factorize, or the data don't fit.
        """
        import copy

        from compresskit.ops.factorize.apply import apply
        from compresskit.ops.factorize.plan import plan
        from compresskit.ops.factorize.replay import facts_of
        from compresskit.ops.macs import calling
        from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d

        module = model.module.eval()
        if self.merge:
            return self._merged(model, module)
        self._check(model, ctx)
        original = copy.deepcopy(module) if self.epochs or self.target_latency else module
        turned = conv1d_to_linear(module)
        data = labelled_data(model, ctx, samples=self.samples, size=_BATCH)
        with calling(module):
            made = plan(module, data, self.settings(ctx), ctx.progress, measured=self._measures())
            found = self._chosen(made, original, model, ctx)
            _check_any(made, found)
            facts: dict[str, Any] = {"layers": facts_of(made, found.choice, turned)}
            share = {unit: round(made.share_of(found.choice, unit), 4) for unit in _units()}
            fitted = apply(module, made, found.choice, data, ctx.progress)
        linear_to_conv1d(module, [name for name in turned if name not in found.choice])
        facts |= {"share": share, **({"refit": fitted} if fitted else {}), **found.facts}
        trained = self.train(module, model.card, ctx, teacher=original)
        facts["notes"] = [*self._notes(facts, model, ctx), *made.notes, *found.notes, *trained.pop("notes", [])]
        facts |= trained
        if ctx.data is not None:
            facts["calibration"] = calibration(ctx.data, self.samples)
        skipped = {name: why for name, why in made.found.skipped.items() if name not in found.choice}
        return self.recorded(model, facts, skipped)

    def _measures(self) -> bool:
        """True where what single layers lose decides: a target is split over them, or one of several kinds is taken."""
        split = self.budget is not None or self.target_latency is not None
        return split or (self.rank is not None and len(self.kinds) > 1)

    def settings(self, ctx: Context) -> FactorizeSettings:
        """The options as the algorithm takes them."""
        from compresskit.ops.factorize.candidates import FactorizeSettings

        return FactorizeSettings(
            self.kinds, self.weighting if ctx.data is not None else "plain", self.rank, multiple=self.round_to,
            include=self.include, exclude=self.exclude, refit=self.refit, seed=ctx.seed,
        )  # fmt: skip

    def _check(self, model: Model, ctx: Context) -> None:
        done = [applied.name for applied in model.card.history if applied.name.startswith("quantize.")]
        if done:
            raise UsageError(
                f"{portable(model.source)} went through {done[-1]} already", "factorize first, then quantize"
            )
        self.check_training_data(ctx)

    def _chosen(self, made: FactorizePlan, original: nn.Module, model: Model, ctx: Context) -> _Found:
        """What is replaced, after the guard."""
        times = _Times(made, ctx)
        timing = (self.guard or ("latency" if self.target_latency else "size")) == "latency"
        if self.target_latency is not None:
            return self._in_time(made, original, model, ctx, times if timing else None)
        found = _Found(self._aim(made))
        if timing:
            for _ in range(_ROUNDS):
                slow = times.slow(found.choice)
                if not slow:
                    break
                made.without(slow)
                found.choice = self._aim(made)
            found.choice = {n: o for n, o in found.choice.items() if n not in times.slow(found.choice)}
        if self.budget is not None:
            self._tell_rest(made, found.choice)
        return found

    def _aim(self, made: FactorizePlan) -> Choice:
        if self.energy is not None:
            return made.keeping(self.energy)
        if self.budget is not None:
            return made.within(self.budget, self.budget_of or "params")
        return made.at_rank()

    def _tell_rest(self, made: FactorizePlan, choice: Choice) -> None:
        for c in made.found.candidates:
            if c.name not in choice:
                made.found.skipped[c.name] = "other layers meet the target with less error"

    def _in_time(
        self, made: FactorizePlan, original: nn.Module, model: Model, ctx: Context, times: _Times | None
    ) -> _Found:
        import copy

        from compresskit.ops.factorize.apply import replace as put
        from compresskit.stages.shared_latency import Choices, within_latency

        def at(share: float) -> tuple[Choice, float]:
            choice = made.within(share, "macs", "`target_latency`")
            return choice, made.share_of(choice, "macs")

        def build(choice: Choice) -> nn.Module:
            smaller = copy.deepcopy(made.module)
            put(smaller, made, choice)
            return smaller

        choices = Choices(made.least("macs"), at, build, "smallest ranks", "give more than that, or `round_to` 1")
        choice, timed = within_latency(original, model.card.inputs, self.target_latency or 1.0, ctx, choices)
        share, ratio = timed[-1]
        slow = times.slow(choice) if times is not None else {}
        if slow:
            made.without(slow)
            choice = {name: option for name, option in choice.items() if name not in slow}
        put_back = f"; then {len(slow)} layers were put back, whose factors are no faster" if slow else ""
        self._tell_rest(made, choice)
        note = (
            f"one sample took {ratio:.3f} of the original's time under onnxruntime with {share:.3f} of the MACs of its "
            f"Linear layers and convolutions{put_back}"
        )
        return _Found(choice, {"timed": [[round(n, 4) for n in pair] for pair in timed]}, [note])

    def _notes(self, facts: dict[str, Any], model: Model, ctx: Context) -> list[str]:
        left = " and ".join(f"{100 * facts['share'][unit]:.1f} % of the {_NAMES[unit]}" for unit in _units())
        notes = [f"{left} of all Linear layers and convolutions remain"]
        if ctx.data is None:
            why = "with `data`, ranks are chosen by the error of the model's outputs, and layers are refitted"
            notes.append(f"ranks were chosen by the singular values of the weights, without refit: {why}")
        else:
            count = min(self.samples, len(ctx.data))
            notes.append(f"calibrated on {count} sample{'s' if count > 1 else ''} of {portable(ctx.data.name)}")
        if "refit" in facts and not self.epochs:
            fitted = facts["refit"]
            notes.append(
                "the least-squares refit was skipped because it did not reduce the output error: more `samples` may "
                "help"
                if fitted["kept"] == "factors"
                else f"layers were {fitted['kept']}: the output error fell from "
                f"{fitted['before']:.3g} to {fitted['after']:.3g}; no training was done, `epochs` N trains the result"
            )
        if model.card.arch.kind == "transformers":
            notes.append("transformers alone cannot load the factorized layers; compresskit can")
        return notes

    def _merged(self, model: Model, module: nn.Module) -> Model:
        from compresskit.ops.factorize.replay import merge

        done = [
            applied.facts.get("layers", {}) for applied in model.card.history if applied.name.startswith("factorize.")
        ]
        turned = {name for layers in done for name, fact in layers.items() if fact.get("conv1d")}
        found = merge(module, turned)
        layers = {
            name: {
                "about": f"{layer.kind} of rank {' and '.join(map(str, layer.ranks))}, merged",
                **({"conv1d": True} if name in turned else {}),
            }
            for name, layer in found.items()
        }
        facts = {
            "merged": True,
            "layers": layers,
            "notes": [f"the factors of {len(layers)} layers were multiplied out"],
        }
        return self.recorded(model, facts)

    @classmethod
    def replay(cls, module: nn.Module, facts: FactorizeFacts, tensors: Tensors) -> Tensors:
        """Put empty factors in the place of layers, or layers in the place of factors."""
        from compresskit.ops.factorize.replay import replay

        replay(module, facts)
        return tensors


def _units() -> tuple[Unit, ...]:
    return "params", "macs"


@dataclass
class _Found:
    """What was chosen, and what the report says of it."""

    choice: Choice
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _check_any(made: FactorizePlan, found: _Found) -> None:
    if not found.choice:
        why = listing([f"{name}: {reason}" for name, reason in made.found.skipped.items()], 1)
        raise InputError(f"no layer of this model can be factorized that way ({why})")


class _Times:
    """Times of factors against their layers."""

    def __init__(self, made: FactorizePlan, ctx: Context) -> None:
        from compresskit.stages.shared_latency import TimesByShape

        self._made, self._ctx, self._times = made, ctx, TimesByShape(ctx)
        self._shapes = made.found.shapes

    def slow(self, choice: Choice) -> dict[str, str]:
        """The layers whose factors aren't faster, with what was measured."""
        found = {}
        layers = {c.name: c.layer for c in self._made.found.candidates}
        for done, (name, option) in enumerate(choice.items(), 1):
            shape, layer = self._shapes[name], layers[name]
            key = (shape, tuple(layer.weight.shape), str(layer), option.kind, option.ranks)
            time = self._times.share(key, shape, partial(self._pair, name, layer, option))
            if time >= 1:
                found[name] = f"its factors are no faster: {time:.2f} of its time under onnxruntime"
            self._ctx.progress("time layers", done, len(choice))
        return found

    def _pair(self, name: str, layer: nn.Module, option: Any) -> tuple[nn.Module, nn.Module]:
        return layer, self._made.replacement(name, option)
