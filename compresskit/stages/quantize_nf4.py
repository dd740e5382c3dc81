"""``quantize.nf4``: 4-bit NormalFloat, as bitsandbytes has it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.shared_bnb import BnbStage


class QuantizeNf4(BnbStage):
    """Round the weights of linear layers to NF4, the 4-bit format of bitsandbytes (QLoRA).

    Needs no data. torch multiplies by these weights without unpacking them (bench `runtime` torch): one token at a
    time, at the speed of reading 4 bits a weight. From a Hugging Face folder comes one that transformers loads.
    Under onnxruntime the same weights are small, not fast: there take gptq or rtn.
    """

    method: ClassVar[str] = "nf4"

    group_size: Annotated[Literal[32, 64, 128, 256], Field(description="Weights that share a scale.")] = 64

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place."""
        from compresskit.ops.packed.nf4 import nf4_grid
        from compresskit.ops.quantize.table import quantize_table

        return self.rounded(model, ctx, nf4_grid(self.group_size), quantize_table)
