"""``quantize.bnb-int8``: int8 by rows, as bitsandbytes has it."""

from __future__ import annotations

from typing import ClassVar

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.shared_bnb import BnbStage


class QuantizeBnbInt8(BnbStage):
    """LLM.int8(): int8 weights of Linear layers with one scale per row, the 8-bit format of bitsandbytes.

    Needs no data. From a Hugging Face folder it makes one that transformers loads; activations are rounded to 8 bits
    there, and outliers stay in floating point. If you do not need this format, rtn in 8 bit is as small and more
    accurate.
    """

    method: ClassVar[str] = "bnb-int8"

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place."""
        from compresskit.ops.quantize.bnb import quantize_int8_rows, row_grid

        return self.rounded(model, ctx, row_grid(), quantize_int8_rows)
