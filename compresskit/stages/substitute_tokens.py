"""``substitute.tokens``: fewer and fewer tokens along the blocks of a transformer."""

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
from compresskit.stages.fields import Budget, Exclude, Include, TargetLatency
from compresskit.stages.whole_model import ChangedFlow

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.shrinking import CalibrationData
    from compresskit.ops.substitute.merged import Run

_TARGETS = ("tokens", "share", "budget", "target_latency")
_SAMPLES = 4
Layers = dict[str, MergeFacts]
_WORDS = {"merge": ("merging", "merged"), "prune": ("pruning", "dropped"), "fuse": ("fusing", "fused")}


class SubstituteTokens(ChangedFlow):
    """Merge or drop tokens along the blocks of a vision transformer or text encoder.

    Each block merges the pairs of tokens with the most similar keys, or drops those with the least attention, so later
    blocks compute on fewer tokens. Weights stay as they are, and no data are needed. `epochs` trains the result
    against the original.
    """

    kind: ClassVar = SUBSTITUTE
    method: ClassVar[str] = "tokens"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = TokensFacts

    reduction: Annotated[
        Literal["merge", "prune", "fuse"],
        Field(
            description="How tokens get fewer: similar ones become one (merge), or those that class tokens attend to "
            "least are dropped (prune), or become one (fuse)."
        ),
    ] = "merge"
    tokens: Annotated[
        int | None,
        Field(ge=1, description="Number of tokens by which each block has fewer, for inputs of one length (images)."),
    ] = None
    share: Annotated[
        float | None,
        Field(
            gt=0,
            le=0.5,
            description="Fraction of the tokens by which each block has fewer, for inputs of any length (text).",
        ),
    ] = None
    budget: Annotated[Budget, Tunable(0.5, 0.95, step=0.05)] = None
    target_latency: TargetLatency = None
    guard: Annotated[
        Literal["size", "latency"],
        Field(
            description="Condition for reducing tokens: fewer multiply-accumulates (size), or also a lower time of "
            "the whole model, measured on this machine (latency)."
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
        """Put blocks with fewer tokens into a module, in place.

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
            run = replace(run, facts=replace(run.facts, reduction=self.reduction))
            check_globs(run.names, (*self.include, *self.exclude))
            skipped = {name: why for name in run.names if (why := left_out(name, self.include, self.exclude))}
            here = _Here(model, data, ctx, run, free, lambda name: name not in skipped)
            layers, facts = self._chosen(here)
            facts |= self._guarded(here, layers, facts)
            left = here.macs(layers)
            place(module, run.names, replace(run.facts, layers=layers))
        behind = run.behind(layers)
        facts |= to_json(replace(run.facts, layers={}, left={"macs": round(left, 4)}, tokens=[run.tokens, behind]))
        facts["layers"] = {name: to_json(fact) | {"about": _about(fact, run.facts)} for name, fact in layers.items()}
        if ctx.data is not None:
            facts["calibration"] = calibration(ctx.data, _SAMPLES)
        trained = self.train(module, model.card, ctx, teacher=original)
        facts["notes"] = [*self._notes(facts, model), *trained.pop("notes", [])]
        return self.recorded(model, facts | trained, skipped)

    def _chosen(self, here: _Here) -> tuple[Layers, dict[str, Any]]:
        """How many tokens each block has fewer, and what was measured for it."""
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
                    f"`budget` {self.budget:g} can't be met: with {_most(self.reduction)} {reached:.3f} of the "
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
        doing, done = _WORDS[self.reduction]
        what, hint = (
            f"{doing} gains nothing with {here.run.tokens} tokens",
            f"more tokens, or with more {done} in fewer blocks (`include`)",
        )
        self.check_faster(time, what, hint)
        return {"time": round(time, 4)}

    def _notes(self, facts: dict[str, Any], model: Model) -> list[str]:
        before, behind = facts["tokens"]
        done = _WORDS[self.reduction][1]
        notes = [
            f"tokens are {done} along {len(facts['layers'])} blocks: {before} come, {behind} are left behind the last; "
            f"{100 * facts['left']['macs']:.1f} % of the multiply-accumulates remain"
        ]
        return notes + self.use_notes(model, facts.get("time"), f"blocks with {done} tokens")

    @classmethod
    def replay(cls, module: nn.Module, facts: TokensFacts, tensors: Tensors) -> Tensors:
        """Put blocks with fewer tokens in the place of those of a freshly built module."""
        from compresskit.ops.substitute.merged import replay

        replay(module, facts)
        return tensors


def _about(fact: MergeFacts, run: TokensFacts) -> str:
    done, where = _WORDS[run.reduction][1], " of each window" if run.window else ""
    count = fact.merged + int(run.reduction == "fuse")
    many = f"{count} token{'' if count == 1 else 's'}{where} {done}"
    return many if fact.merged else f"{'merged' if run.reduction == 'merge' else 'remaining'} tokens pass through"


def _most(reduction: str) -> str:
    return "every pair merged" if reduction == "merge" else f"half of the tokens {_WORDS[reduction][1]} in each block"


@dataclass(frozen=True)
class _Here:
    """A model with the blocks that get fewer tokens.

    Attributes:
        free: Whether its inputs have any length.
        within: Whether a block may have fewer than the one before.
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
        """The least that goes for a share of the multiply-accumulates, and the share that it comes to."""
        run, low, high = self.run, 0, 50 if self.free else (self.run.tokens - self.run.facts.protected) // 2

        def made(amount: int) -> Layers:
            return run.sharing(amount / 100, self.within) if self.free else run.merging(amount, self.within)

        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.macs(made(middle)) <= share else (middle, high)
        return made(high), self.macs(made(high))

    def in_time(self, target: float) -> tuple[Layers, dict[str, Any]]:
        """What goes for a share of the time."""
        from compresskit.stages.shared_latency import Choices, within_latency

        choices = Choices(self.at(0.0)[1] + 1e-9, self.at, self.built, "fewest tokens")
        inputs = self.model.card.inputs
        layers, timed = within_latency(self.model.module, inputs, target, self.ctx, choices, sequence=self.run.tokens)
        times = [[round(n, 4) for n in pair] for pair in timed]
        return layers, {"timed": times, "time": times[-1][1]}

    def built(self, layers: Layers) -> nn.Module:
        """A copy of the model with fewer tokens."""
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
