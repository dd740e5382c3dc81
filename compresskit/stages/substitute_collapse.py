"""``substitute.collapse``: a fitted layer in the place of a block."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import UsageError, listing
from compresskit.facts import to_json
from compresskit.facts.substitute import CollapseFacts, Fitted
from compresskit.kinds import SUBSTITUTE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form, Searched, Tunable
from compresskit.stages.batches import calibration, labelled_data
from compresskit.stages.fields import Budget, Exclude, Include, Refit, Samples, TargetLatency
from compresskit.stages.recovery import Recovery
from compresskit.stages.shared_latency import TimesByShape
from compresskit.stages.shared_targets import Among, Picked

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.ops.substitute.candidates import Candidate
    from compresskit.ops.substitute.sites import Places

_BATCH = 32
_TARGETS = ("count", "budget", "target_latency")
_KINDS: dict[str, tuple[Fitted, ...]] = {
    "1x1": ("1x1", "linear"),
    "3x3": ("3x3", "linear"),
    "linear": ("linear",),
    "auto": ("1x1", "3x3", "linear"),
}


class SubstituteCollapse(Recovery):
    """Replace blocks, or halves of transformer layers, by one fitted layer each: a convolution, or a Linear layer.

    Each layer is fitted by least squares to what the block computes on unlabelled `data`. Blocks whose replacement
    changes the model's output least go first, and only where the layer is measured to be faster. `epochs` trains the
    result against the original.
    """

    kind: ClassVar = SUBSTITUTE
    method: ClassVar[str] = "collapse"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    needs: ClassVar = ("calibration",)
    facts: ClassVar = CollapseFacts
    # By size, since what is faster in a bench of single layers may differ from run to run.
    searched: ClassVar = Searched(("cnn",), {"samples": 512, "guard": "size"})

    count: Annotated[
        int | None,
        Field(ge=1, description="Number of blocks to replace; with another target, the most."),
        Tunable(1, 4),
    ] = None
    budget: Budget = None
    target_latency: TargetLatency = None
    stand_in: Annotated[
        Literal["auto", "1x1", "3x3", "linear"],
        Field(
            description="Layer that replaces a block of convolutions: 1x1, 3x3, or the one with the smaller error for "
            "the time that it saves (auto). Blocks of tokens always get a Linear layer (linear: only these)."
        ),
    ] = "auto"
    parts: Annotated[
        Literal["blocks", "halves"],
        Field(
            description="Parts of the model that are replaced: whole blocks, or the halves of transformer layers "
            "(attention, feed-forward), each by a Linear layer beside the residual connection."
        ),
    ] = "blocks"
    guard: Annotated[
        Literal["size", "latency"],
        Field(
            description="Condition for replacing a block: a layer with fewer weights and multiply-accumulates (size), "
            "or also a lower time, measured per block on this machine (latency)."
        ),
    ] = "latency"
    include: Include = ()
    exclude: Exclude = ()
    refit: Refit = True
    samples: Samples = 512

    @model_validator(mode="after")
    def _one_target(self) -> SubstituteCollapse:
        if self.budget is not None and self.target_latency is not None:
            raise UsageError("`budget` and `target_latency`: give one of them")
        return self

    def check_options(self) -> None:
        """Refuse to guess a target.

        Raises:
            UsageError: Nothing says how much is to be replaced.
        """
        if all(getattr(self, name) is None for name in _TARGETS):
            known = ", ".join(f"`{name}`" for name in _TARGETS)
            raise UsageError(f"no target is given. Give one of {known}", "for example `count` 2")

    def run(self, model: Model, ctx: Context) -> Model:
        """Replace blocks of a module in place.

        Raises:
            UsageError: The target can't be met, a glob matches nothing, or there are no data.
            InputError: The model has no blocks, or the data don't fit.
        """
        from torch import nn

        from compresskit.ops.macs import calling
        from compresskit.ops.prune.rewrite import conv1d_to_linear, linear_to_conv1d
        from compresskit.ops.substitute.candidates import candidates
        from compresskit.ops.substitute.choose import saved_macs
        from compresskit.ops.substitute.sites import find
        from compresskit.ops.substitute.walk import apply

        self.check_options()
        if ctx.data is None:
            raise UsageError("fitting layers needs data", "give `data` FILE")
        module = model.module.eval()
        original = copy.deepcopy(module) if self.epochs else None
        turned = conv1d_to_linear(module)
        data = labelled_data(model, ctx, samples=self.samples, size=_BATCH)
        with calling(module):
            halves = self.parts == "halves"
            places = find(module, data, self._settings(ctx), _KINDS[self.stand_in], halves=halves)
            tried = candidates(module, places.sites, data, ctx.progress)
            found = self._chosen(tried, _Here(model, data, ctx, places, TimesByShape(ctx)))
            chosen = found.chosen
            fitted = apply(module, chosen, places, data, ctx.progress, refit=self.refit)
        linear = {name for name, part in module.named_modules() if isinstance(part, nn.Linear)}
        linear_to_conv1d(module, [name for name in turned if name in linear])
        left = 1 - sum(map(saved_macs, chosen)) / max(1, places.macs)
        facts: dict[str, Any] = {
            **found.facts,
            "layers": {c.site.name: to_json(c.fact) | {"about": _about(c)} for c in chosen},
            "share": {"macs": round(left, 4)},
            "refit": fitted,
            "calibration": calibration(ctx.data, self.samples),
        }
        trained = self.train(module, model.card, ctx, teacher=original)
        facts["notes"] = [*self._notes(facts, chosen, model, ctx), *found.notes, *trained.pop("notes", [])]
        facts |= trained
        skipped = dict(places.skipped)
        taken = {c.site.name for c in chosen}
        for site in places.sites:
            if site.name not in taken:
                skipped.setdefault(site.name, "other blocks lose less for the target")
        return self.recorded(model, facts, skipped)

    def _settings(self, ctx: Context) -> Any:
        from compresskit.ops.shrinking import ShrinkSettings

        return ShrinkSettings(include=self.include, exclude=self.exclude, refit=self.refit, seed=ctx.seed)

    def _chosen(self, tried: list[Candidate], here: _Here) -> Picked[Candidate]:
        """What is replaced, after the guard."""
        timed = self.guard == "latency" or self.target_latency is not None
        if timed and (self.stand_in == "auto" or self.count is None):
            tried = here.faster(tried)
        among = Among(tried, max(1, here.places.macs), self.count, "block", here.why())
        if self.target_latency is not None:
            return self._in_time(among, here)
        return among.of_budget(self.budget) if self.budget is not None else self._counted(tried, here, timed=timed)

    def _counted(self, tried: list[Candidate], here: _Here, *, timed: bool) -> Picked[Candidate]:
        from compresskit.ops.substitute.choose import by_count, saved_time

        count = self.count or 1
        chosen = by_count(tried, count, saved_time)
        while timed and any(c.time is None for c in chosen):
            known = {id(c): faster for c in chosen for faster in here.faster([c])}
            tried = [known.get(id(c), c) for c in tried if id(c) in known or c not in chosen]
            chosen = by_count(tried, count, saved_time)
        if len(chosen) < count:
            blocks = f"{len(chosen)} block{'' if len(chosen) == 1 else 's'}"
            than = "faster" if timed else "smaller"
            raise UsageError(
                f"`count` {count}: {blocks} of this model can be replaced by something {than}{here.why()}",
                f"give a smaller `count`{', or `guard` size' if timed else ''}",
            )
        return Picked(chosen)

    def _in_time(self, among: Among[Candidate], here: _Here) -> Picked[Candidate]:
        from compresskit.ops.substitute.stand_in import put

        def build(chosen: list[Candidate]) -> nn.Module:
            smaller = copy.deepcopy(here.module)
            for c in chosen:
                put(smaller, c.site.name, copy.deepcopy(c.stand_in), c.fact.aim)
            return smaller

        return among.in_time(self.target_latency or 1.0, here.module, here.model.card.inputs, here.ctx, build)

    def _notes(self, facts: dict[str, Any], chosen: list[Candidate], model: Model, ctx: Context) -> list[str]:
        fitted = facts["refit"]
        names = listing([c.site.name for c in chosen], 12)
        what = ("block", "blocks") if self.parts == "blocks" else ("half of a block", "halves of blocks")
        notes = [
            f"a fitted layer stands in for {len(chosen)} {what[len(chosen) > 1]}: {names}; "
            f"{100 * facts['share']['macs']:.1f} % of the multiply-accumulates remain"
        ]
        if ctx.data is not None:
            notes.append(f"fitted on {min(self.samples, len(ctx.data))} samples of {portable(ctx.data.name)}")
        if not self.epochs:
            notes.append(
                f"layers were fitted along the model: the output error fell from {fitted['before']:.3g} to "
                f"{fitted['after']:.3g}; no training was done, `epochs` N trains the result"
                if fitted["kept"] != "stand-ins"
                else "the least-squares refit was skipped because it did not reduce the output error: more `samples` "
                "may help"
            )
        if model.card.arch.kind == "transformers":
            notes.append("transformers alone cannot load the fitted layers; compresskit can")
        return notes

    @classmethod
    def replay(cls, module: nn.Module, facts: CollapseFacts, tensors: Tensors) -> Tensors:
        """Put empty layers in the place of blocks."""
        from compresskit.ops.substitute.stand_in import replay

        replay(module, facts.layers)
        return tensors


def _about(c: Candidate) -> str:
    shape = c.site.options[c.kind].shape
    saved = f", {c.time:.2f} of the block's time" if c.time is not None else ""
    what = "Linear layer" if c.kind == "linear" else f"{c.kind.replace('x', '×')} convolution"
    return f"{what} of {shape[1]} to {shape[0]}{saved}"


@dataclass
class _Here:
    """A model with its blocks, and the times of layers against them."""

    model: Model
    data: CalibrationData
    ctx: Context
    places: Places
    times: TimesByShape

    @property
    def module(self) -> nn.Module:
        return self.model.module

    def why(self) -> str:
        """Why blocks are left alone, for an error."""
        reasons = [f"{name}: {why}" for name, why in self.places.skipped.items()]
        return f" ({listing(reasons, 2)})" if reasons else ""

    def faster(self, tried: list[Candidate]) -> list[Candidate]:
        """Those that are faster than their blocks, with their time; the others are noted as left alone."""
        found = []
        for done, c in enumerate(tried, 1):
            block = self.module.get_submodule(c.site.block)
            key = c.site.shape[1:], str(block), c.site.name[len(c.site.block) :], c.kind
            time = self.times.share(key, c.site.shape, partial(self._pair, c, block))
            if time < 1:
                found.append(replace(c, time=time))
            else:
                told = f"a fitted layer is no faster: {time:.2f} of the block's time under onnxruntime"
                self.places.skipped[c.site.name] = told
            self.ctx.progress("time stand-ins", done, len(tried))
        return found

    def _pair(self, c: Candidate, block: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The block and what stands in for it, each by itself."""
        from compresskit.ops.substitute.alone import Alone, arguments_of
        from compresskit.ops.substitute.candidates import standing_in

        args, kwargs = arguments_of(block, lambda: self.data.run(self.module))
        place = self.places.trace.once()[c.site.block].first or 0
        alone = Alone(copy.deepcopy(block), place, args, kwargs).eval()
        with standing_in(self.module, [c]):
            other = Alone(copy.deepcopy(self.module.get_submodule(c.site.block)), place, args, kwargs).eval()
        return alone, other
