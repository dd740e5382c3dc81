"""What the methods in bitsandbytes' formats share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from compresskit.facts.quantize import QuantizeFacts
from compresskit.kinds import QUANTIZE
from compresskit.model import Model
from compresskit.stage import Context, Stage
from compresskit.stages.fields import Exclude, Include
from compresskit.stages.streaming import quantized

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.packed.grid import Grid, Packed


class BnbStage(Stage):
    """Linear layers on one grid, which bitsandbytes knows too."""

    kind: ClassVar = QUANTIZE
    takes: ClassVar = ("torch",)
    gives: ClassVar = "torch"
    facts: ClassVar = QuantizeFacts

    include: Include = ()
    exclude: Exclude = ()

    @property
    def promises_speed(self) -> bool:
        """A smaller file alone, as other weights of few bits."""
        return False

    def splits(self, *, data: bool, limited: bool) -> bool:
        """Layer by layer."""
        return True

    def reads(self, *, data: bool, limited: bool) -> Literal["all", "mapped", "streamed"]:
        """One by one: it needs no data."""
        return "streamed"

    def rounded(self, model: Model, ctx: Context, grid: Grid, algorithm: Callable[[Tensor, Grid], Packed]) -> Model:
        """Quantize the linear layers of a module in place."""
        from compresskit.ops.quantize.bnb import readable, stored
        from compresskit.ops.quantize.bnb_select import BnbSelection, kept
        from compresskit.ops.quantize.opened import opened

        foreign = model.card.arch.kind == "transformers"
        with opened(model.module):
            stay = kept(model.module, grid, transformers=foreign)
        selection = BnbSelection(
            grid.bits, grid.group_size, grid.symmetric, self.include, self.exclude, grid.format, grid, stay
        )
        parts = stored if foreign else None
        model, facts, skipped = quantized(self, model, ctx, selection, algorithm, parts)
        if foreign:
            facts["stored"] = "bitsandbytes"
            before = [a.facts["layers"] for a in model.card.history if a.facts.get("stored") == "bitsandbytes"]
            if readable(model.module, {name for layers in (*before, facts["layers"]) for name in layers}):
                facts["notes"] = ["transformers loads this folder: AutoModel.from_pretrained, with the extra hf"]
            else:
                facts["notes"] = ["transformers can't load this folder: its layers are in more than one format"]
        return self.recorded(model, facts, skipped)

    @classmethod
    def replay(cls, module: nn.Module, facts: QuantizeFacts, tensors: Tensors) -> Tensors:
        """Put empty packed layers in the place of the quantized ones."""
        from compresskit.ops.packed.modules import PackedLinear
        from compresskit.ops.packed.unpacking import Unpacked
        from compresskit.ops.quantize.bnb_tensors import BnbTensors
        from compresskit.ops.quantize.weights import replay

        plain = replay(module, facts)
        if facts.stored == "bitsandbytes":
            layers = {name: module.get_submodule(name) for name in facts.layers if name not in plain}
            packed = {name: layer.packed for name, layer in layers.items() if isinstance(layer, PackedLinear)}
            tensors = BnbTensors(tensors, packed | plain)
        return Unpacked(tensors, plain) if plain else tensors
