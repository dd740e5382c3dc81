"""``lora route MODEL A B …``: adapters that are chosen by the input."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from compresskit.errors import InputError, UsageError
from compresskit.facts import to_json
from compresskit.facts.lora import RoutingFacts
from compresskit.kinds import LORA
from compresskit.model import Model, portable
from compresskit.stage import Context, Form, Stage
from compresskit.stages.fields import Samples

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors

_BATCH = 32
_MOST = 10.0
"""The largest share of an adapter."""


class LoraRoute(Stage):
    """Attach several LoRA adapters to a model, and choose one of them for each token.

    Without `data` an adapter is chosen by how far a layer's input lies along the direction that the adapter changes
    most (Arrow). With `data`, samples labelled with the number of their adapter from 0, each layer gets a gate: a
    linear discriminant of its inputs, without training steps. Routed adapters are slower than merged ones.
    """

    kind: ClassVar = LORA
    method: ClassVar[str] = "route"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = RoutingFacts
    followed_by: ClassVar = ()

    adapters: Annotated[tuple[Path, ...], Field(description="Folders of adapters in PEFT's format, two or more.")] = ()
    hard: Annotated[
        bool | None,
        Field(
            description="Each token takes one adapter; else a mean of them, by their probabilities. (one without "
            "`data`, a mean with it)"
        ),
    ] = None
    mix: Annotated[
        tuple[str, ...],
        Field(
            description="Shares of the adapters for inputs of one label, one number for each adapter, as 1,0. Repeat "
            "it for each label in order. (its own adapter alone)"
        ),
    ] = ()
    samples: Samples = 512

    @field_validator("mix")
    @classmethod
    def _numbers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            _shares(text)
        return value

    def options(self) -> dict[str, Any]:
        """The options as JSON; paths as an artefact may hold them."""
        return super().options() | {"adapters": [portable(path) for path in self.adapters]}

    def check_options(self) -> None:
        """Refuse to choose among fewer than two.

        Raises:
            UsageError: There are fewer adapters.
        """
        if len(self.adapters) < 2:
            raise UsageError("`adapters`: two or more are needed to choose among", "give their folders")
        count = len(self.adapters)
        if self.mix and (len(self.mix) != count or any(len(_shares(text)) != count for text in self.mix)):
            raise UsageError(
                f"`mix`: {count} adapters need {count} times {count} shares", "give one `mix` for each label"
            )

    def run(self, model: Model, ctx: Context) -> Model:
        """Put adapters beside the layers of a module, in place.

        Raises:
            UsageError: There are fewer than two adapters, or the model has some already.
            InputError: An adapter is damaged, hostile, no LoRA, or for another base; the data aren't labelled.
        """
        import torch

        from compresskit.ops.lora.adapter import adapted
        from compresskit.ops.lora.folder import base_hash, check_base, packed_layers, read_adapter, terms_of
        from compresskit.ops.lora.routed import attach, discriminants, fill, plan, prototypes
        from compresskit.stages.batches import calibration

        self.check_options()
        module = model.module.eval()
        if packed_layers(module) or adapted(module):
            raise UsageError(f"{model.source} is quantized or has adapters already", "give the adapters' own base")
        found, base = [read_adapter(path) for path in self.adapters], base_hash(module)
        for adapter in found:
            check_base(adapter, base)
            if adapter.kind != "LORA":
                raise InputError(f"{adapter.source} is not a LoRA adapter; only those can be routed")
        terms = [terms_of(adapter.config, adapter.tensors, module) for adapter in found]
        trained = ctx.data is not None
        if self.mix and not trained:
            raise UsageError("`mix` says what inputs of a label take, which only a gate tells", "give `data` FILE")
        hard = not trained if self.hard is None else self.hard
        layers = plan(module, terms, trained=trained, hard=hard, mixed=bool(self.mix))
        if ctx.data is None:
            gates = prototypes(layers, terms)
        else:
            gates = discriminants(module, layers, self._batches(model, ctx), len(terms))
        before = sum(p.numel() for p in module.parameters())
        attach(module, layers)
        fill(module, terms, gates, torch.tensor([_shares(text) for text in self.mix]) if self.mix else None)
        added = sum(p.numel() for p in module.parameters()) - before
        how = "a gate made from data" if trained else "the adapters' own directions (Arrow)"
        facts: dict[str, Any] = {
            "layers": {name: to_json(fact) for name, fact in layers.items()},
            "adapters": [portable(path) for path in self.adapters],
            "base_sha256": base,
            "share": round(added / max(1, before), 6),
            "notes": [
                f"{len(terms)} adapters lie beside {len(layers)} layers and are chosen by {how}; they add "
                f"{100 * added / max(1, before):.2g} % of the parameters, and are slower than merged ones"
            ],
        }
        if ctx.data is not None:
            facts["calibration"] = calibration(ctx.data, self.samples)
        return self.recorded(model, facts)

    def _batches(self, model: Model, ctx: Context) -> Iterator[Any]:
        """What calls the module, the labels, and the mask of tokens."""
        import torch

        from compresskit.data.checked import checked
        from compresskit.stages.batches import forward_of

        if ctx.data is None or not ctx.data.labelled or ctx.data.kind == "pairs":
            raise InputError(
                "a gate needs samples that are labelled with the number of their adapter", "for example text,label"
            )
        forward, count = forward_of(model.module, model.card.inputs), len(self.adapters)
        rows = torch.randperm(len(ctx.data), generator=torch.Generator().manual_seed(ctx.seed))[: self.samples]
        wanted, at = set(rows.tolist()), 0
        for batch in ctx.data.batches(_BATCH):
            keep = [i for i in range(len(batch.targets if batch.targets is not None else ())) if at + i in wanted]
            at += len(batch.targets if batch.targets is not None else ())
            if not keep or batch.targets is None:
                continue
            inputs = {
                name: torch.tensor(array[keep])
                for name, array in checked(batch, ctx.data.name, model.card.inputs).items()
            }
            labels = torch.from_numpy(batch.targets[keep])
            if labels.dtype != torch.int64 or int(labels.max()) >= count or int(labels.min()) < 0:
                raise InputError(f"{ctx.data.name}: labels are numbers of adapters, 0 to {count - 1}")
            yield partial(forward, model.module, inputs), labels, inputs.get("attention_mask")

    @classmethod
    def replay(cls, module: nn.Module, facts: RoutingFacts, tensors: Tensors) -> Tensors:
        """Put empty routers beside the layers."""
        from compresskit.ops.lora.routed import attach

        attach(module, facts.layers)
        return tensors


def _shares(text: str) -> list[float]:
    """The numbers of a `mix`.

    Raises:
        ValueError: They can't be read.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(abs(share) <= _MOST for share in found):
        raise ValueError(f"expected shares of the adapters as 1,0.5, each of {_MOST:g} at most, found '{text}'")
    return found
