"""``lora.loftq``: quantize, and train an adapter that begins with what rounding lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import UsageError
from compresskit.facts.lora import LoftqFacts
from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.fields import with_bits
from compresskit.stages.lora_base import Made
from compresskit.stages.lora_peft import _LowRank

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.checkpoint.tensors import Tensors


class LoraLoftq(_LowRank):
    """LoftQ: quantize Linear layers and train adapters that start from the quantization error.

    4 bit is NF4; 2 and 3 bit use uniform steps. The codes do not change in training (QLoRA). With `epochs` 0 nothing is
    trained and no data is needed.
    """

    method: ClassVar[str] = "loftq"
    facts: ClassVar = LoftqFacts
    adapter_kind: ClassVar = "lora"

    bits: Annotated[Literal[2, 3, 4], Field(description="Bits per weight.")] = 4
    group_size: Annotated[Literal[32, 64, 128], Field(description="Group size: columns that share a scale.")] = 64
    rounds: Annotated[
        int, Field(ge=1, le=50, description="Iterations of alternating between rounding and fitting the adapter.")
    ] = 5

    @property
    def label(self) -> str:
        """The method with its bits, unless its name says them."""
        return with_bits(self.method, self.bits)

    def adapt(self, model: Model, ctx: Context) -> Made:
        """See :class:`~compresskit.stages.lora_base.Adapting`."""
        from compresskit.ops.lora.loftq import quantize_loftq
        from compresskit.ops.lora.targets import find_targets, linear_only
        from compresskit.ops.packed.grid import Grid
        from compresskit.ops.packed.nf4 import nf4_grid
        from compresskit.ops.quantize.bnb_select import BnbSelection
        from compresskit.ops.quantize.rtn import quantize_rtn
        from compresskit.ops.quantize.weights import quantize_module

        if self.merge:
            raise UsageError("loftq quantizes: merging needs requantization", "remove `merge`")
        module = model.module
        names, skipped = find_targets(module, self.targets, linear_only, rank=self.rank)
        conv1d = [name for name in names if type(module.get_submodule(name)).__name__ == "Conv1D"]
        if conv1d:
            raise UsageError(f"loftq has no packed form of '{conv1d[0]}' (Conv1D)", "take `method` lora")
        grid = nf4_grid(self.group_size) if self.bits == 4 else Grid(self.bits, self.group_size)
        layers = {module.get_submodule(name).get_parameter("weight").data_ptr(): name for name in names}
        factors: dict[str, tuple[Tensor, Tensor]] = {}

        def algorithm(weight: Tensor, grid: Grid) -> Any:
            packed, down, up = quantize_loftq(weight, grid, quantize_rtn, self.rank, self.rounds)
            factors[layers[weight.data_ptr()]] = down, up
            return packed

        include = tuple(_escaped(name) for name in names)
        selection = BnbSelection(grid.bits, grid.group_size, grid.symmetric, include, (), grid.format, grid, {})
        quantized, _ = quantize_module(module, selection, algorithm, ctx.progress)
        made = self.trained(model, ctx, names, skipped, factors)
        made.facts["quantized"] = quantized
        return made

    @classmethod
    def replay(cls, module: nn.Module, facts: LoftqFacts, tensors: Tensors) -> Tensors:
        """Put empty packed layers in place, and empty adapters beside them."""
        from compresskit.ops.quantize.weights import replay

        replay(module, facts.quantized)
        return super().replay(module, facts, tensors)


def _escaped(name: str) -> str:
    """A name as a glob that means only it."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
