"""``lora merge MODEL [ADAPTER]``: fold adapters into weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from compresskit.errors import UsageError
from compresskit.facts.lora import LoraFacts
from compresskit.kinds import LORA
from compresskit.model import Model, portable
from compresskit.stage import Context, Form, Stage
from compresskit.stages.lora_base import _about

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors


class LoraMerge(Stage):
    """Merge an adapter into the weights, in float64: the one stored with MODEL, or one in PEFT's format.

    Needs neither data nor PEFT. An adapter that was trained on other weights is refused by its hash.
    """

    kind: ClassVar = LORA
    method: ClassVar[str] = "merge"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = LoraFacts
    takes_adapters: ClassVar[bool] = True

    adapter: Annotated[
        Path | None, Field(description="Folder of an adapter in PEFT's format. (the adapter stored with MODEL)")
    ] = None

    def options(self) -> dict[str, Any]:
        """The options as JSON; paths as an artefact may hold them."""
        return {"adapter": self.adapter and portable(self.adapter)}

    def run(self, model: Model, ctx: Context) -> Model:
        """Merge into a module in place.

        Raises:
            UsageError: There is no adapter or there are two, weights are packed or shared, or it is not linear.
            InputError: The adapter is damaged, hostile, or for another base.
        """
        from compresskit.ops.lora.adapter import adapted, detach, merge
        from compresskit.ops.lora.folder import base_hash, check_base, packed_layers, read_adapter, terms_of
        from compresskit.ops.lora.prompt import is_prompted

        module = model.module.eval()
        beside = bool(adapted(module))
        if packed_layers(module):
            raise UsageError(
                f"{model.source} is quantized: merging needs requantization",
                "merge into the unquantized model, then quantize",
            )
        if is_prompted(module):
            raise UsageError(
                f"{model.source} has a prompt before its text, which no weight can take in", "it stays beside"
            )
        notes = []
        if self.adapter is None:
            if not beside:
                raise UsageError(f"{model.source} has no adapter beside its weights", "give `adapter` FOLDER")
            terms, base = detach(module), None
        else:
            if beside:
                raise UsageError(f"{model.source} has adapters beside its weights already", "merge those first")
            found, base = read_adapter(self.adapter), base_hash(module)
            if found.kind == "PROMPT_TUNING":
                raise UsageError(f"{self.adapter} is a prompt, which no weight can take in", "it stays beside")
            check_base(found, base)
            if found.base is None:
                notes.append("the adapter does not record its base weights: only names and shapes were checked")
            terms = terms_of(found.config, found.tensors, module)
        merge(module, terms)
        layers = {name: {"about": _about("merged", term), "rank": term.rank} for name, term in terms.items()}
        notes.insert(0, f"adapters were merged into {len(layers)} layers")
        facts = {"layers": layers, "base_sha256": base, "notes": notes}
        return self.recorded(model, facts)

    @classmethod
    def replay(cls, module: nn.Module, facts: LoraFacts, tensors: Tensors) -> Tensors:
        """Take off what an earlier stage put beside the weights."""
        from compresskit.ops.lora.adapter import detach

        detach(module)
        return tensors
