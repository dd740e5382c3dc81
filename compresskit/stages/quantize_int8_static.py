"""``quantize.int8-static``: weights and activations in 8 bit, ranges from calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from compresskit.model import Model
from compresskit.stage import Context, Searched
from compresskit.stages.shared_int8 import StaticStage


class QuantizeInt8Static(StaticStage):
    """Weights and activations in 8 bit, with activation ranges calibrated on `data`. Fast on CPUs.

    The ONNX graph gets QuantizeLinear/DequantizeLinear pairs. Convolutional networks run entirely on integers. In
    models with attention only matrix products with weights do; the rest stays in float. For transformers from PyTorch,
    smoothquant is more accurate at the same speed. The integer types follow `target`: on x86 unsigned activations and
    signed weights (7 bits without VNNI, so that products cannot saturate), on Arm and GPUs both signed.
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
