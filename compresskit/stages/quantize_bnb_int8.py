"""``quantize.bnb-int8``: int8 by rows, as bitsandbytes has it."""

from __future__ import annotations

from typing import ClassVar

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.shared_bnb import BnbStage


class QuantizeBnbInt8(BnbStage):
    """Round the weights of linear layers to int8, one scale a row: the 8-bit format of bitsandbytes (LLM.int8()).

    Needs no data. From a Hugging Face folder comes one that transformers loads, with activations rounded to 8 bit
    there and outliers in floating point. Without a need for that format, rtn in 8 bit is as small and more exact.
    """

    method: ClassVar[str] = "bnb-int8"

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place."""
        from compresskit.ops.quantize.bnb import quantize_int8_rows, row_grid

        return self.rounded(model, ctx, row_grid(), quantize_int8_rows)
