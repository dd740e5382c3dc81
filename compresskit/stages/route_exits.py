"""``route.exits``: a classifier that stops at the first exit that is confident."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from compresskit.errors import InputError, UsageError, listing
from compresskit.facts import to_json
from compresskit.facts.route import ExitFacts, ExitsFacts
from compresskit.kinds import ROUTE
from compresskit.model import Model
from compresskit.quality.drop import parse_drop
from compresskit.stage import Context, Form, Searched, Tunable
from compresskit.stages.candidate_exits import CandidateExits, HeldOut
from compresskit.stages.training import TrainingOptions

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.route.thresholds import Chosen
    from compresskit.train.settings import Optimizing

_DROP = "0.5pt"
_FOLLOWING = (
    *("rtn", "hqq", "gptq", "awq", "adaround", "palette", "nf4", "bnb-int8"),
    *("auto", "int8-static", "int8-dynamic"),
)
"""What can quantize a model with exits. smoothquant moves scales between layers that heads read too; qat would train
with thresholds that hold for other logits."""
_SHARE, _MOST, _LEAST = 0.2, 2000, 32
"""Samples that are held out for the thresholds where nobody says how many: a share, at most so many."""


class RouteExits(TrainingOptions):
    """Add early exits to a classifier: easy inputs leave after a few blocks, hard ones go on.

    Each exit is a small head behind a block. The heads learn from the outputs of the last exit, without labels. Their
    confidence thresholds are calibrated on samples held out of `data`, so that at most `exit_drop` is lost there
    (`max_drop`, or 0.5 points). The original's blocks and its last exit stay as they are unless `body` is trained.
    """

    kind: ClassVar = ROUTE
    method: ClassVar[str] = "exits"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    needs: ClassVar = ("training",)
    facts: ClassVar = ExitsFacts
    measures: ClassVar[bool] = False
    varies: ClassVar[bool] = True
    reads_limits: ClassVar[bool] = True
    searched: ClassVar = Searched(("cnn", "text"), {"candidates": 4, "train_samples": 8192}, goal="latency")
    followed_by: ClassVar = tuple(f"quantize.{method}" for method in _FOLLOWING)
    rates: ClassVar[dict[str, float]] = {"sgd": 1e-2, "adamw": 2e-3, "muon": 2e-2}

    exits: Annotated[
        int, Field(ge=1, le=16, description="Most exits to add; fewer where more of them gain nothing.")
    ] = 3
    exit_drop: Annotated[
        str | None,
        Field(
            description="Most accuracy that early exits may cost on the held-out samples: points (0.3pt) or a "
            "percentage. (`max_drop`, or 0.5pt)"
        ),
        Tunable(choices=("0.1pt", "0.2pt", "0.4pt", "0.8pt")),
    ] = None
    candidates: Annotated[int, Field(ge=1, le=64, description="Blocks whose exits are trained and compared.")] = 8
    hidden: Annotated[
        int, Field(ge=0, le=4096, description="Hidden units of an exit's head; 0 is a single Linear layer.")
    ] = 64
    body: Annotated[
        Literal["frozen", "trained"],
        Field(
            description="Train the heads alone (frozen: the last exit equals the original), or all of the model "
            "together with them (trained: better early exits, another model)."
        ),
    ] = "frozen"
    body_epochs: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description="Training epochs of `body` trained, at learning rate 0.01 with sgd, 1e-4 with adamw.",
        ),
    ] = 5
    convolutions: Annotated[
        int,
        Field(
            ge=0,
            le=4,
            description="Number of 3×3 convolutions in an exit's head, for images. More of them give more confident "
            "exits; training takes longer and keeps whole feature maps in memory.",
        ),
    ] = 0
    calibrate_on: Annotated[
        Literal["random", "last"],
        Field(
            description="Which samples of `data` calibrate the thresholds: any, or the last ones, which can then be "
            "samples that the model was not trained on."
        ),
    ] = "random"
    calibration: Annotated[
        int | None,
        Field(ge=1, description="Samples of `data` held out to calibrate the thresholds. (a fifth, at most 2000)"),
    ] = None
    include: Annotated[
        tuple[str, ...], Field(description="Add exits only behind blocks whose name matches this glob. Repeatable.")
    ] = ()
    exclude: Annotated[
        tuple[str, ...], Field(description="Add no exit behind blocks whose name matches this glob. Repeatable.")
    ] = ()
    epochs: Annotated[int, Field(ge=1, le=10_000, description="Training epochs of the heads.")] = 20
    optimizer: Annotated[
        Literal["sgd", "adamw", "muon"] | None, Field(description="Optimizer of training. (adamw)")
    ] = None
    lr: Annotated[
        float | None,
        Field(
            gt=0,
            description="Learning rate of the heads, with cosine decay to zero. (sgd: 0.01, adamw: 0.002, muon: 0.02)",
        ),
    ] = None
    teacher_share: Annotated[
        float,
        Field(ge=0, le=1, description="Fraction of the loss that comes from the last exit, for data with labels."),
    ] = 1.0

    @property
    def promises_size(self) -> bool:
        """No: what the heads add is paid for by the speed."""
        return False

    @field_validator("augment")
    @classmethod
    def _seen_once(cls, value: str) -> str:
        if value not in ("auto", "none"):
            raise ValueError("the heads see each sample as it is: what the blocks give is computed once")
        return value

    @field_validator("exit_drop")
    @classmethod
    def _known_drop(cls, value: str | None) -> str | None:
        try:
            parse_drop(value or _DROP)
        except UsageError as error:
            raise ValueError(error.hint) from error
        return value

    @model_validator(mode="after")
    def _body_is_trained(self) -> RouteExits:
        if self.body == "frozen" and self.body_epochs != type(self).model_fields["body_epochs"].default:
            raise UsageError("`body_epochs` is for `body` trained", "give both")
        return self

    def run(self, model: Model, ctx: Context) -> Model:
        """Add exits to a module in place.

        Raises:
            UsageError: There are no data, too few, or a glob matches nothing.
            InputError: The model is no classifier of a chain of blocks, the data don't fit, or no exit pays.
        """
        from compresskit.ops.route.exits import attach
        from compresskit.ops.route.thresholds import choose

        if ctx.data is None:
            raise UsageError("exits need training data", "give `data` FILE")
        allowed = parse_drop(self.exit_drop or ctx.max_drop or _DROP).points(100.0) / 100
        here = self._look(model, ctx)
        attach(here.module, here.places.layers, here.places.output)
        trained = self._train(here, ctx)
        seen = here.tried(ctx)
        found = choose(seen.tried, allowed, self.exits)
        if not found.thresholds:
            best = listing([f"{100 * share:.1f} % behind {name}" for name, share in seen.agreements.items()], 8)
            raise InputError(
                f"no exit gains anything within a drop of {100 * allowed:g} points on {len(here.held)} samples; "
                f"agreement with the last exit: {best}",
                "allow more with `exit_drop`, train longer (`epochs`), or give more `data`",
            )
        layers = here.keep(found, seen)
        names = list(here.places.layers)
        skipped = here.places.skipped | {
            name: "other exits save more" for place, name in enumerate(names) if place not in found.thresholds
        }
        facts = {
            "layers": {name: to_json(fact) | {"about": _about(fact)} for name, fact in layers.items()},
            "output": here.places.output,
            "frozen": self.body == "frozen",
            "calibrated": len(here.held),
            "drop": round(100 * found.loss, 4),
            "share": {"macs": round(found.cost, 4)},
            **trained,
        }
        facts["notes"] = [*_notes(layers, found, seen, len(here.held)), *facts["notes"]]
        return self.recorded(model, {k: v for k, v in facts.items() if v is not None}, skipped)

    def _look(self, model: Model, ctx: Context) -> CandidateExits:
        """The places, and the samples: what is trained on, and what is held out for the thresholds."""
        from compresskit.ops.route.places import find

        module = model.module.eval()
        plan = self.training_plan(module, model.card, ctx)
        first = plan.task.inputs(next(plan.samples.plain(1, 1)))
        places = find(
            module, lambda target: plan.task.forward(target, first), first, count=self.candidates,
            hidden=self.hidden, convs=self.convolutions, include=self.include, exclude=self.exclude,
        )  # fmt: skip
        count = len(plan.samples)
        held = self.calibration or min(_MOST, int(_SHARE * count))
        if held < _LEAST or count - held < 2:
            raise UsageError(
                f"thresholds need {_LEAST} held-out samples or more, and {held} of {count} can be held out",
                "give more `data`, or `calibration` N",
            )
        last = self.calibrate_on == "last"
        rest, apart = plan.samples.parted(held) if last else plan.samples.split(held, ctx.seed)
        return CandidateExits(module, places, replace(plan, samples=rest), apart)

    def _train(self, here: CandidateExits, ctx: Context) -> dict[str, Any]:
        """Train the heads on what the body gives, which is computed once."""
        import torch

        from compresskit.train.heads import Heads, from_last

        torch.manual_seed(ctx.seed)
        plan = here.plan
        seen = here.features(plan.samples, ctx)
        side = Heads(here.places.layers, seen.columns[: len(here.places.layers)])
        held = None if plan.held is None else here.features(plan.held, ctx)
        alone = replace(
            plan,
            samples=seen.material,
            held=None if held is None else held.material,
            augment=None,
            task=replace(plan.task, labels=None),
        )
        fitted = alone.fit(side, from_last(self.teacher_share, self.temperature))
        side.fill(here.heads)
        notes = self.notes(alone, fitted, ctx, "the last exit")
        if self.body == "trained":
            notes.append(self._train_body(here))
        return {"training": self.told(alone, fitted, ctx), "notes": notes}

    def _train_body(self, here: CandidateExits) -> str:
        """Train all of the module with its heads, towards what the original says; what a reader must know."""
        import copy

        from compresskit.ops.route.exits import closed
        from compresskit.train.heads import Tapping, together

        original, plan = copy.deepcopy(here.module), here.plan
        moving = super()._optimizing(here.module)
        moving = replace(moving, lr=TrainingOptions.rates[moving.kind])
        how = replace(plan.training, epochs=self.body_epochs, optimizing=moving)
        with closed(original):
            loss = together(plan.task, original, self.teacher_share, self.temperature)
            replace(plan, training=how, held=None, folder=None).fit(Tapping(here.module, here.places.layers), loss)
        here.module.eval()
        epochs = f"{self.body_epochs} epoch{'s' * (self.body_epochs > 1)}"
        return f"then all of the model was trained with them for {epochs}: the last exit is not the original's any more"

    def _optimizing(self, module: nn.Module) -> Optimizing:
        return self.moving("adamw", self.rates)

    @classmethod
    def replay(cls, module: nn.Module, facts: ExitsFacts, tensors: Tensors) -> Tensors:
        """Put empty heads behind the blocks."""
        from compresskit.ops.route.exits import attach

        attach(module, facts.layers, facts.output)
        return tensors


def _about(fact: ExitFacts) -> str:
    return f"exit at {100 * fact.macs:.0f} % of the multiply-accumulates, threshold {fact.threshold:.3f}"


def _notes(layers: dict[str, ExitFacts], found: Chosen, seen: HeldOut, held: int) -> list[str]:
    leaves = listing([f"{100 * fact.share:.1f} % behind {name}" for name, fact in layers.items()], 16)
    measure = "accuracy" if seen.labelled else "agreement with the last exit"
    return [
        f"{len(layers)} early exit{'s' * (len(layers) > 1)}: of {held} held-out samples {leaves} leave; "
        f"{100 * found.cost:.1f} % of the multiply-accumulates remain on average, and {measure} falls by "
        f"{100 * found.loss:.2f} points",
        "a batch is left when every sample in it has an answer; each answer is that of the first confident exit, "
        "whatever else is in the batch",
    ]
