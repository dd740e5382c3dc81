"""``quantize.int8-dynamic``: weights stored in 8 bit, activations rounded while the model runs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.shared_int8 import Int8Stage


class QuantizeInt8Dynamic(Int8Stage):
    """Matrix products in 8 bit with activation ranges computed at run time. Faster on CPUs; needs no data.

    For transformers, LSTMs and other models of Linear layers under onnxruntime. OpenVINO runs these files slowly and
    does not support the LSTM: use smoothquant or int8-static for it. Embeddings are stored in 8 bit; convolutions and
    GRUs stay in float.
    """

    method: ClassVar[str] = "int8-dynamic"
    takes: ClassVar = ("onnx",)

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize the ONNX file of ``model`` into ``ctx.work``.

        Raises:
            InputError: The graph has nothing to quantize.
        """
        from compresskit.exporter.dynamic import quantize_dynamic_int8

        if not isinstance(model.body, Path):
            raise TypeError("the runner exports the module first")
        out, target = self.place(ctx), self.made_for()
        facts = quantize_dynamic_int8(
            model.body,
            out,
            per_channel=self.per_channel,
            reduce_range=target.int8.reduce_range,
            progress=ctx.progress,
        )
        width = "7" if target.int8.reduce_range else "8"
        note = f"target {target.title}: weights int8 of {width} bits, activations uint8 with a range found at run time"
        return self.finished(model, out, {**facts, "target": target.name, "notes": [*facts["notes"], note]})
