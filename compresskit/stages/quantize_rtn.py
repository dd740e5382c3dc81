"""``quantize --method rtn``: weight-only rounding, no data needed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from compresskit.checkpoint.bundle import weights_metadata
from compresskit.model import Applied, Model
from compresskit.stage import Context, Stage

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.quantize.select import Selection

_GROUPS = (0, 16, 32, 64, 128, 256)


class QuantizeRtn(Stage):
    """Round weights to 4 or 8 bits, each group's range clipped where that lowers the squared error.

    Linear and Embedding weights get a scale for each group, convolutions one for each output channel. Activations stay
    floating point. Needs no data, and works on a bare state dict.
    """

    stage: ClassVar[str] = "quantize"
    method: ClassVar[str] = "rtn"
    takes: ClassVar = ("torch", "weights")
    gives: ClassVar = "same"

    bits: Annotated[Literal[4, 8], Field(description="Bits of a weight.")] = 4
    group_size: Annotated[
        int | None,
        Field(description="Most columns that share a scale: 16 to 256; 0 is a whole row. (4 bit: 32, 8 bit: 128)"),
    ] = None
    symmetric: Annotated[bool, Field(description="Store no zero points: a little smaller, a little less exact.")] = (
        False
    )
    clip: Annotated[bool, Field(description="Search the best range of each group; off is faster, plain rounding.")] = (
        True
    )
    include: Annotated[tuple[str, ...], Field(description="Only layers whose name matches this glob; repeatable.")] = ()
    exclude: Annotated[tuple[str, ...], Field(description="No layer whose name matches this glob; repeatable.")] = ()

    @field_validator("group_size")
    @classmethod
    def _known_group(cls, value: int | None) -> int | None:
        if value is not None and value not in _GROUPS:
            raise ValueError(f"must be one of {', '.join(map(str, _GROUPS))}")
        return value

    def selection(self) -> Selection:
        """The options as the algorithm takes them."""
        from compresskit.ops.quantize.select import Selection

        size = self.group_size if self.group_size is not None else (32 if self.bits == 4 else 128)
        return Selection(self.bits, size, self.symmetric, self.include, self.exclude)

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place, or the tensors of a file one by one into ``ctx.work``."""
        if isinstance(model.body, Path):
            card = model.card.after(Applied(self.name(), self.options()))
            facts, skipped, path = self._stream(model.body, weights_metadata(card), ctx)
            model = replace(model, body=path)
        else:
            from compresskit.ops.quantize.rtn import quantize_rtn
            from compresskit.ops.quantize.weights import quantize_module

            algorithm = partial(quantize_rtn, clip=self.clip)
            facts, skipped = quantize_module(model.body, self.selection(), algorithm, ctx.progress)
        applied = Applied(self.name(), self.options(), facts, skipped)
        return replace(model, card=model.card.after(applied))

    @classmethod
    def replay(cls, module: nn.Module, facts: dict[str, Any], tensors: Tensors) -> Tensors:
        """Put empty packed layers in the place of the quantized ones."""
        from compresskit.ops.quantize.unpacked import Unpacked
        from compresskit.ops.quantize.weights import replay

        plain = replay(module, facts)
        return Unpacked(tensors, plain) if plain else tensors

    def _stream(
        self, path: Path, metadata: dict[str, str], ctx: Context
    ) -> tuple[dict[str, Any], dict[str, str], Path]:
        from compresskit.checkpoint.safetensors_writer import Entry, write_safetensors
        from compresskit.checkpoint.tensors import open_tensors
        from compresskit.ops.quantize.stream import Quantizer, plan

        tensors = open_tensors(path, allow_nonfinite=True)
        chosen = plan(tensors, self.selection())
        quantizer = Quantizer(tensors, chosen, clip=self.clip, progress=ctx.progress)
        out = ctx.work / "model.safetensors"
        write_safetensors(out, (Entry(*entry) for entry in quantizer.entries()), metadata)
        return quantizer.facts(), chosen.skipped, out
