"""What PEFT has not: ``lora.bottleneck``, ``prompt`` and ``full``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compresskit.errors import UsageError
from compresskit.facts.lora import PromptFacts
from compresskit.model import Model, portable
from compresskit.stage import Context
from compresskit.stages.lora_base import Adapting, FineTuning, Made

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors


class LoraBottleneck(Adapting):
    """Bottleneck adapters: a narrow two-layer network after Linear layers, added to their output.

    By default they follow the layers that project back to the model's width. They are not linear, so they cannot be
    merged. PEFT does not support them.
    """

    method: ClassVar[str] = "bottleneck"
    rates: ClassVar[dict[str, float]] = {"sgd": 1e-2, "adamw": 1e-3}

    rank: Annotated[int, Field(ge=1, le=4096, description="Width of the bottleneck.")] = 16
    lr: Annotated[
        float | None, Field(gt=0, description="Learning rate, with cosine decay to zero. (adamw: 1e-3, sgd: 0.01)")
    ] = None

    def adapt(self, model: Model, ctx: Context) -> Made:
        """See :class:`Adapting`."""
        from compresskit.ops.lora.adapter import adapted, detach
        from compresskit.ops.lora.bottleneck import add_bottlenecks, bottleneck_config, bottleneck_tensors, narrowing
        from compresskit.ops.lora.injected import still
        from compresskit.ops.lora.targets import find_targets, plain_linear

        if self.merge:
            raise UsageError("a bottleneck is not linear: it can't be merged", "remove `merge`, or take `method` lora")
        module = model.module
        names, skipped = find_targets(module, self.targets, plain_linear)
        chosen = names if self.targets else narrowing(module, names)
        skipped |= {name: "it does not narrow: `targets` takes it in" for name in names if name not in chosen}
        add_bottlenecks(module, chosen, self.rank, ctx.seed)
        trained = sum(layer.adapter.term.numel() for layer in adapted(module).values())
        with still(module):
            facts = self.learn(module, model, ctx)
        terms = detach(module)
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        config = bottleneck_config(chosen, self.rank, portable(model.source))
        return Made(config, bottleneck_tensors(terms), terms, trained, facts, skipped)


class LoraPrompt(Adapting):
    """Prompt tuning: trained vectors in front of the text, for text models of transformers."""

    method: ClassVar[str] = "prompt"
    facts: ClassVar = PromptFacts
    rates: ClassVar[dict[str, float]] = {"sgd": 3e-1, "adamw": 1e-2}

    tokens: Annotated[int, Field(ge=1, le=1024, description="Number of prompt vectors.")] = 16
    lr: Annotated[
        float | None, Field(gt=0, description="Learning rate, with cosine decay to zero. (adamw: 0.01, sgd: 0.3)")
    ] = None

    def adapt(self, model: Model, ctx: Context) -> Made:
        """See :class:`Adapting`."""
        from compresskit.ops.lora.prompt import NAME, add_prompt, first_prompt, prompt_config, remove_prompt

        if self.merge or self.targets:
            which = "merge" if self.merge else "targets"
            raise UsageError(f"`{which}` is for adapters of layers, and a prompt has none", f"remove `{which}`")
        module = model.module
        values = first_prompt(module, self.tokens, ctx.seed)
        config = prompt_config(module, self.tokens, portable(model.source))
        add_prompt(module, values)
        try:
            facts = self.learn(module, model, ctx)
        finally:
            found = remove_prompt(module)
        facts |= {"prompt": list(found.shape)}
        return Made(config, {NAME: found}, {}, found.numel(), facts)

    def attach(self, module: nn.Module, made: Made) -> None:
        """See :class:`Adapting`."""
        from compresskit.ops.lora.prompt import NAME, add_prompt

        add_prompt(module, made.tensors[NAME])

    @classmethod
    def replay(cls, module: nn.Module, facts: PromptFacts, tensors: Tensors) -> Tensors:
        """Put an empty prompt before a freshly built model's text."""
        from compresskit.ops.lora.prompt import replay

        replay(module, facts)
        return tensors


class LoraFull(FineTuning):
    """Full fine-tuning of all weights, as a reference for the adapters."""

    method: ClassVar[str] = "full"
    needs_no_replay: ClassVar[bool] = True
    rates: ClassVar[dict[str, float]] = {"sgd": 1e-2, "adamw": 2e-5}

    epochs: Annotated[int, Field(ge=1, le=10_000, description="Training epochs.")] = 3
    lr: Annotated[
        float | None, Field(gt=0, description="Learning rate, with cosine decay to zero. (adamw: 2e-5, sgd: 0.01)")
    ] = None

    def run(self, model: Model, ctx: Context) -> Model:
        """Train a module in place.

        Raises:
            UsageError: There is no data, or the weights are packed.
            InputError: The data don't fit, or training diverged.
        """
        from compresskit.ops.lora.folder import packed_layers

        module = model.module
        if packed_layers(module):
            raise UsageError(
                f"{model.source} is quantized: its codes can't be trained",
                "take `method` lora, or train before quantize",
            )
        facts = self.learn(module, model, ctx)
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        facts |= {"parameters": count, "share": 1.0}
        return self.recorded(model, facts)
