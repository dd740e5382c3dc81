"""``quantize.nf4``: 4-bit NormalFloat, as bitsandbytes has it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.shared_bnb import BnbStage


class QuantizeNf4(BnbStage):
    """NF4: the 4-bit format of bitsandbytes for Linear layers (QLoRA). Needs no data.

    torch multiplies by these weights without unpacking them (bench `runtime` torch), so that one token at a time runs
    at the speed of reading 4 bits per weight. From a Hugging Face folder it makes one that transformers loads. Under
    onnxruntime these weights save size but no time: use gptq or rtn there.
    """

    method: ClassVar[str] = "nf4"

    group_size: Annotated[Literal[32, 64, 128, 256], Field(description="Block size: weights that share a scale.")] = 64

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place."""
        from compresskit.ops.packed.nf4 import nf4_grid
        from compresskit.ops.quantize.table import quantize_table

        return self.rounded(model, ctx, nf4_grid(self.group_size), quantize_table)
