"""What all ways of training adapters share: their options, the base's hash, the folder, and the replay."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import UsageError
from compresskit.facts.lora import LoraFacts
from compresskit.kinds import LORA
from compresskit.model import Model, portable
from compresskit.stage import SIDECAR, Context, Form
from compresskit.stages.training import TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.lora.adapter import Term

Targets = Annotated[
    tuple[str, ...],
    Field(
        description="Adapt only layers whose name matches this glob. Repeatable. (all except the output layer of "
        "a language model)"
    ),
]
Rank = Annotated[int, Field(ge=1, le=4096, description="Rank of an adapter.")]


@dataclass(frozen=True)
class Made:
    """Result of training an adapter.

    Attributes:
        config: PEFT's, for the adapter's folder.
        tensors: By PEFT's names.
        terms: What they mean for each layer.
        trained: Numbers that training moved.
        facts: Of training, and what the method adds.
        skipped: Layers left alone, with the reason.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    terms: dict[str, Term]
    trained: int
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class FineTuning(TrainingOptions):
    """Training on labels, scored pairs, or a language model's own text."""

    kind: ClassVar = LORA
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar[type[LoraFacts]] = LoraFacts
    learns_scores: ClassVar[bool] = True
    measures: ClassVar[bool] = False
    rates: ClassVar[dict[str, float]] = {"sgd": 1e-2, "adamw": 5e-4}

    epochs: Annotated[int, Field(ge=0, le=10_000, description="Training epochs; 0 writes an untrained adapter.")] = 3
    batch_size: Annotated[int, Field(ge=1, description="Training batch size.")] = 32
    optimizer: Annotated[Literal["sgd", "adamw"], Field(description="Optimizer of training.")] = "adamw"
    lr: Annotated[
        float | None, Field(gt=0, description="Learning rate, with cosine decay to zero. (adamw: 5e-4, sgd: 0.01)")
    ] = None
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="Fraction of the steps for the linear warm-up of the learning rate.")
    ] = 0.1
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay (L2 penalty).")] = 0.0
    recompute: Annotated[
        bool,
        Field(
            description="Gradient checkpointing: recompute activations in the backward pass. Much less "
            "memory, a third more time."
        ),
    ] = False

    def learn(self, module: nn.Module, model: Model, ctx: Context) -> dict[str, Any]:
        """Train what takes gradients in a module of a model; facts as :meth:`train` gives them."""
        from compresskit.ops.lora.injected import recomputing

        with recomputing(module) if self.recompute else nullcontext():
            return self.train(module, model.card, ctx)

    @model_validator(mode="after")
    def _no_teacher(self) -> FineTuning:
        own = type(self).model_fields
        for name in ("teacher_share", "temperature"):
            if getattr(self, name) != own[name].default:
                raise UsageError(f"`{name}` is for a teacher, and lora has none", "to learn from one: distill")
        return self


class Adapting(FineTuning):
    """A way to train adapters; the weights of the model stay as they are."""

    targets: Targets = ()
    merge: Annotated[bool, Field(description="Merge the adapters into the weights, in float64.")] = False

    @model_validator(mode="after")
    def _statistics_stay(self) -> Adapting:
        if self.recalibrate:
            raise UsageError(
                "`recalibrate` would change the base: adapters leave its batch normalizations as they are",
                "remove it",
            )
        return self

    @property
    def leaves_adapters(self) -> bool:
        """Whether what it gives holds adapters beside the weights."""
        return not self.merge

    def run(self, model: Model, ctx: Context) -> Model:
        """Train adapters for a module, and leave them beside its weights or in them.

        Raises:
            UsageError: Options that don't fit the model.
            InputError: There is nothing to adapt, the data don't fit, or training diverged.
            MachineError: PEFT isn't installed.
        """
        from compresskit.ops.lora.adapter import facts_of, merge
        from compresskit.ops.lora.folder import FOLDER, base_hash, packed_layers, write_adapter

        module = model.module.eval()
        if self.merge and packed_layers(module):
            raise UsageError(
                f"{model.source} is quantized: merging needs requantization",
                "remove `merge`: the adapters stay beside the codes; or merge into the unquantized model",
            )
        whole = sum(p.numel() for p in module.parameters()) + _packed_weights(module)
        made = self.adapt(model, ctx)
        base = base_hash(module)
        write_adapter(ctx.work / SIDECAR / FOLDER, made.config, made.tensors, base)
        if self.merge:
            merge(module, made.terms)
        else:
            self.attach(module, made)
        rank = max((term.rank for term in made.terms.values()), default=0)
        about = {n: {"about": _about(self.method, t), "rank": t.rank} for n, t in made.terms.items()}
        facts = {
            "layers": about,
            "base_sha256": base,
            "parameters": made.trained,
            **made.facts,
        }
        if not self.merge:
            facts["adapters"] = facts_of(made.terms)
        share = made.trained / max(1, whole)
        facts["share"] = round(share, 6)
        notes = [
            f"{made.trained:,} parameters were trained, {100 * share:.2g} % of the model's {whole:,}{_in(made, rank)}"
        ]
        where = "merged into the weights" if self.merge else "beside the weights"
        notes.append(f"the adapters are {where}; {FOLDER}/ holds them in PEFT's format")
        facts["notes"] = [*made.facts.get("notes", []), *notes]
        return self.recorded(model, facts, made.skipped)

    @abstractmethod
    def adapt(self, model: Model, ctx: Context) -> Made:
        """Train; afterwards the module is as it was before (LoftQ: with packed layers in it)."""

    def attach(self, module: nn.Module, made: Made) -> None:
        """Put what was trained beside the weights."""
        from compresskit.ops.lora.adapter import attach

        attach(module, made.terms)

    @classmethod
    def replay(cls, module: nn.Module, facts: Any, tensors: Tensors) -> Tensors:
        """Put empty adapters beside the layers of a freshly built module."""
        from compresskit.ops.lora.adapter import replay

        if facts.adapters is not None:
            replay(module, facts.adapters)
        return tensors


class WithPeft(Adapting):
    """Adapters that PEFT trains."""

    packages: ClassVar[dict[str, str]] = {"peft": "lora"}
    adapter_kind: ClassVar[Literal["lora", "rslora", "dora", "pissa", "vera", "ia3"]]

    def adapt(self, model: Model, ctx: Context) -> Made:
        """See :class:`Adapting`."""
        module = model.module
        names, skipped = self.find(module)
        return self.trained(model, ctx, names, skipped)

    def trained(
        self,
        model: Model,
        ctx: Context,
        names: list[str],
        skipped: dict[str, str],
        factors: dict[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Made:
        """Train adapters of some layers.

        Args:
            model: Its body is a module.
            ctx: With data, unless there is nothing to train.
            names: Of the layers.
            skipped: The others, with the reason.
            factors: What the adapters begin as; else what PEFT begins with.
        """
        from compresskit.ops.lora.folder import terms_of
        from compresskit.ops.lora.injected import Start, inject, start_from, still, target_modules

        module = model.module
        injected = inject(module, self.adapter_kind, names, Start(**self.sizes()), seed=ctx.seed)
        try:
            if factors:
                start_from(injected, factors)
            start, trained = injected.tensors(), injected.trainable()
            with still(module):
                facts = self.learn(module, model, ctx)
            found, config = injected.stored_tensors(), injected.stored_config(portable(model.source))
            moved = injected.tensors()
        finally:
            injected.remove()
        if self.epochs and not factors:  # given factors change the model from the start
            idle = _unmoved(start, moved)
            skipped = {**skipped, **dict.fromkeys(idle, "it does not affect the loss")}
            found = {name: t for name, t in found.items() if not any(name.startswith(f"{layer}.") for layer in idle)}
            config["target_modules"] = target_modules(module, [name for name in names if name not in idle])
        terms = terms_of(config, found, module)
        return Made(config, found, terms, trained, facts, skipped)

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """The fields of :class:`~compresskit.ops.lora.injected.Start`."""

    @abstractmethod
    def find(self, module: nn.Module) -> tuple[list[str], dict[str, str]]:
        """The layers to adapt, and the others with the reason."""


def _unmoved(start: dict[str, Tensor], end: dict[str, Tensor]) -> list[str]:
    """Layers none of whose tensors changed in training."""
    import torch

    from compresskit.ops.lora.folder import layers_of

    layers = layers_of(start)
    still = [
        layer
        for layer in layers
        if all(torch.equal(t, end[name]) for name, t in start.items() if name.startswith(f"{layer}."))
    ]
    return still if len(still) < len(layers) else []


def _packed_weights(module: nn.Module) -> int:
    """Weights that are packed, and so no parameters."""
    import math

    from compresskit.ops.packed.modules import PackedLayer

    return sum(math.prod(layer.shape) for layer in module.modules() if isinstance(layer, PackedLayer))


def _about(method: str, term: Term) -> str:
    return f"{method}, rank {term.rank}" if term.rank else method


def _in(made: Made, rank: int) -> str:
    if not made.terms:
        return ""
    return f", in {len(made.terms)} layer{'s' * (len(made.terms) > 1)}" + (f" of rank {rank}" if rank else "")
