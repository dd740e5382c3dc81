"""``quantize.int8-static``: weights and activations in 8 bit, ranges from calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from compresskit.model import Model
from compresskit.stage import Context, Searched
from compresskit.stages.shared_int8 import StaticStage


class QuantizeInt8Static(StaticStage):
    """Weights and activations in 8 bit; activation ranges are calibrated on `data`. Fast on CPUs.

    The ONNX graph gets QuantizeLinear/DequantizeLinear pairs. Networks of convolutions run on integers throughout; in
    models with attention the matrix products with a weight do, the rest stays float. For transformers that come as
    torch, smoothquant loses less at the same speed. Signedness follows `target`: on x86 unsigned activations and signed
    weights (7 bits without VNNI, so that products can't saturate), on Arm and GPUs both signed.
    """

    method: ClassVar[str] = "int8-static"
    searched: ClassVar = Searched(("cnn", "tiny", "linear"), {"samples": 512})
    takes: ClassVar = ("onnx",)

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize the ONNX file of ``model`` into ``ctx.work``.

        Raises:
            UsageError: There is no calibration data.
            InputError: The data doesn't fit, or the graph can't be quantized.
        """
        self.check_data(ctx)
        if not isinstance(model.body, Path):
            raise TypeError("the runner exports the module first")
        out = self.place(ctx)
        return self.finished(model, out, self.quantized(model.body, out, model.card.inputs, ctx))
