"""``substitute.tokens``: tokens that are alike become one along the blocks of a transformer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import UsageError
from compresskit.facts import to_json
from compresskit.facts.substitute import MergeFacts, TokensFacts
from compresskit.kinds import SUBSTITUTE
from compresskit.model import Model
from compresskit.stage import Context, Form, Tunable
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Exclude, Include, TargetLatency
from compresskit.stages.whole_model import ChangedFlow

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.ops.substitute.merged import Run

_TARGETS = ("tokens", "share", "budget", "target_latency")
_SAMPLES = 4
Layers = dict[str, MergeFacts]


class SubstituteTokens(ChangedFlow):
    """Merge tokens that are alike along the blocks of a vision transformer or text encoder.

    Each block merges the pairs of tokens with the most similar keys, so later blocks compute on fewer tokens. Weights
    stay as they are, and no data are needed. `epochs` trains the result against the original.
    """

    kind: ClassVar = SUBSTITUTE
    method: ClassVar[str] = "tokens"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = TokensFacts

    tokens: Annotated[
        int | None, Field(ge=1, description="Number of tokens merged in each block, for inputs of one length (images).")
    ] = None
    share: Annotated[
        float | None,
        Field(
            gt=0, le=0.5, description="Fraction of the tokens merged in each block, for inputs of any length (text)."
        ),
    ] = None
    budget: Annotated[
        float | None,
        Field(gt=0, lt=1, description="Target size: fraction of the model's multiply-accumulates (MACs) to keep."),
        Tunable(0.5, 0.95, step=0.05),
    ] = None
    target_latency: TargetLatency = None
    guard: Annotated[
        Literal["size", "latency"],
        Field(
            description="Condition for merging: fewer multiply-accumulates (size), or also a lower time of the whole "
            "model, measured on this machine (latency)."
        ),
    ] = "latency"
    include: Include = ()
    exclude: Exclude = ()

    def check_options(self) -> None:
        """Refuse to guess a target.

        Raises:
            UsageError: None is given, or several are.
        """
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(f"`{name}`" for name in _TARGETS)
            found = "no target is given" if not given else "several targets are given"
            raise UsageError(f"{found}. Give one of {known}", "for example `tokens` 8")

    def run(self, model: Model, ctx: Context) -> Model:
        """Merge the tokens of a module in place.

        Raises:
            UsageError: The target can't be met, or a glob matches nothing.
            InputError: The model has no blocks whose tokens can be merged, or it gains nothing by it.
        """
        from compresskit.ops.globs import check_globs, left_out
        from compresskit.ops.macs import calling
        from compresskit.ops.substitute.merged import find, place

        self.check_options()
        module = model.module.eval()
        original = copy.deepcopy(module) if self.epochs else None
        data = calibration_data(model, ctx, samples=_SAMPLES, size=_SAMPLES, rows=_SAMPLES)
        ids = any(not spec.dtype.startswith("float") for spec in model.card.inputs)
        free = any(isinstance(size, str) for spec in model.card.inputs for size in spec.shape[1:])
        with calling(module):
            run = find(module, data, first=int(ids), windows=free)
            check_globs(run.names, (*self.include, *self.exclude))
            skipped = {name: why for name in run.names if (why := left_out(name, self.include, self.exclude))}
            here = _Here(model, data, ctx, run, free, lambda name: name not in skipped)
            layers, facts = self._chosen(here)
            facts |= self._guarded(here, layers, facts)
            left = here.macs(layers)
            place(module, run.names, replace(run.facts, layers=layers))
        behind = run.behind(layers)
        facts |= to_json(replace(run.facts, layers={}, left={"macs": round(left, 4)}, tokens=[run.tokens, behind]))
        facts["layers"] = {
            name: to_json(fact) | {"about": _about(fact, run.facts.window)} for name, fact in layers.items()
        }
        if ctx.data is not None:
            facts["calibration"] = calibration(ctx.data, _SAMPLES)
        trained = self.train(module, model.card, ctx, teacher=original)
        facts["notes"] = [*self._notes(facts, model), *trained.pop("notes", [])]
        return self.recorded(model, facts | trained, skipped)

    def _chosen(self, here: _Here) -> tuple[Layers, dict[str, Any]]:
        """What is merged in each block, and what was measured for it."""
        if self.tokens is not None:
            if here.free:
                raise UsageError("`tokens` is for inputs of one length, and this model takes any", "give `share`")
            return here.run.merging(self.tokens, here.within), {}
        if self.share is not None:
            return here.run.sharing(self.share, here.within), {}
        if self.budget is not None:
            layers, reached = here.at(self.budget)
            if reached > self.budget:
                raise UsageError(
                    f"`budget` {self.budget:g} can't be met: with every pair merged {reached:.3f} of the "
                    "multiply-accumulates remain",
                    f"give {reached + 5e-4:.3f} or more",
                )
            return layers, {}
        return here.in_time(self.target_latency or 1.0)

    def _guarded(self, here: _Here, layers: Layers, facts: dict[str, Any]) -> dict[str, Any]:
        """The share of the original's time, which must be below 1."""
        if self.guard == "size" or "timed" in facts:
            return {}
        time = here.time(layers)
        what, hint = (
            f"merging gains nothing with {here.run.tokens} tokens",
            "more tokens, or with more merged in fewer blocks (`include`)",
        )
        self.check_faster(time, what, hint)
        return {"time": round(time, 4)}

    def _notes(self, facts: dict[str, Any], model: Model) -> list[str]:
        before, behind = facts["tokens"]
        notes = [
            f"tokens are merged along {len(facts['layers'])} blocks: {before} come, {behind} are left behind the last; "
            f"{100 * facts['left']['macs']:.1f} % of the multiply-accumulates remain"
        ]
        return notes + self.use_notes(model, facts.get("time"), "blocks that merge tokens")

    @classmethod
    def replay(cls, module: nn.Module, facts: TokensFacts, tensors: Tensors) -> Tensors:
        """Put blocks that merge tokens in the place of those of a freshly built module."""
        from compresskit.ops.substitute.merged import replay

        replay(module, facts)
        return tensors


def _about(fact: MergeFacts, window: int) -> str:
    where = " of each window" if window else ""
    many = f"{fact.merged} token{'' if fact.merged == 1 else 's'}"
    return f"{many}{where} merged" if fact.merged else "merged tokens pass through"


@dataclass(frozen=True)
class _Here:
    """A model with the blocks in which tokens are merged.

    Attributes:
        free: Whether its inputs have any length.
        within: Whether tokens may be merged in a block.
    """

    model: Model
    data: CalibrationData
    ctx: Context
    run: Run
    free: bool
    within: Callable[[str], bool]

    def macs(self, layers: Mapping[str, MergeFacts]) -> float:
        """Share of the original's multiply-accumulates."""
        from compresskit.ops.macs import count_macs
        from compresskit.ops.substitute.merged import merged

        module = self.model.module
        whole = sum(count_macs(module, self.data.example).values())
        with merged(module, self.run, layers):
            return sum(count_macs(module, self.data.example).values()) / max(1, whole)

    def at(self, share: float) -> tuple[Layers, float]:
        """The least that is merged for a share of the multiply-accumulates, and the share that it comes to."""
        run, low, high = self.run, 0, 50 if self.free else (self.run.tokens - self.run.facts.protected) // 2

        def made(amount: int) -> Layers:
            return run.sharing(amount / 100, self.within) if self.free else run.merging(amount, self.within)

        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.macs(made(middle)) <= share else (middle, high)
        return made(high), self.macs(made(high))

    def in_time(self, target: float) -> tuple[Layers, dict[str, Any]]:
        """What is merged for a share of the time."""
        from compresskit.stages.shared_latency import Choices, within_latency

        choices = Choices(self.at(0.0)[1] + 1e-9, self.at, self.built, "most tokens merged")
        inputs = self.model.card.inputs
        layers, timed = within_latency(self.model.module, inputs, target, self.ctx, choices, sequence=self.run.tokens)
        times = [[round(n, 4) for n in pair] for pair in timed]
        return layers, {"timed": times, "time": times[-1][1]}

    def built(self, layers: Layers) -> nn.Module:
        """A copy of the model with merged tokens."""
        from compresskit.ops.substitute.merged import place

        module = copy.deepcopy(self.model.module)
        place(module, self.run.names, replace(self.run.facts, layers=layers))
        return module

    def time(self, layers: Layers) -> float:
        """Share of the original's time."""
        from compresskit.stages.shared_latency import share_of_model

        return share_of_model(
            self.model.module, self.built(layers), self.model.card.inputs, self.ctx, sequence=self.run.tokens
        )
