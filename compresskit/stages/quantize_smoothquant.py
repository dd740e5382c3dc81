"""``quantize.smoothquant``: static int8 after outliers have moved from activations into weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from compresskit.errors import GateError
from compresskit.model import Model
from compresskit.stage import Context, Searched
from compresskit.stages.shared_int8 import StaticStage

_MOST = 1e-3
"""Relative L2 distance that smoothing, which should change nothing but float rounding, may put between outputs."""


class QuantizeSmoothquant(StaticStage):
    """SmoothQuant: static 8 bit for transformers, with activation outliers moved into the weights.

    Each channel of a Linear layer's input is divided by a scale, and its weight is multiplied by it, so that both
    quantize well. The scale costs nothing where the preceding layer can absorb it. Then the model is exported and
    quantized by int8-static. The most accurate of the fast 8-bit formats of a transformer, and the fastest under
    OpenVINO.
    """

    method: ClassVar[str] = "smoothquant"
    searched: ClassVar = Searched(("text",), {"samples": 256})
    takes: ClassVar = ("torch",)

    alpha: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Migration strength: how much of the activation range moves into the weights. "
            "(chosen per layer on `data`)",
        ),
    ] = None

    def run(self, model: Model, ctx: Context) -> Model:
        """Smooth the module in place, export it, and quantize the ONNX file into ``ctx.work``.

        Raises:
            UsageError: There is no calibration data.
            InputError: The data doesn't fit, or the model has no Linear layer.
            GateError: The smoothed module computes something else than the original one, or its ONNX file does.
        """
        from compresskit.exporter.call import evaluating
        from compresskit.exporter.checked import export_checked
        from compresskit.exporter.parity import ParityCheck
        from compresskit.exporter.pooled import pooling
        from compresskit.ops.quantize.smooth import smooth_module
        from compresskit.stages.batches import batches_of, forward_of

        self.check_data(ctx)
        if isinstance(model.body, Path) or ctx.data is None:
            raise TypeError("a module is needed")
        inputs = model.card.inputs
        batches = batches_of(ctx.data, inputs, 8, min(self.samples, len(ctx.data)))
        with evaluating(model.body):
            smoothed, left = smooth_module(
                model.body, batches, forward_of(model.body, inputs), alpha=self.alpha, progress=ctx.progress
            )
        if smoothed["difference"] > _MOST:
            raise GateError(
                f"smoothing changed the float outputs by {smoothed['difference']:.1g} (at most {_MOST:g} is allowed)",
                "use `method` int8-static, which leaves the float model as it is",
            )
        smooth_onnx, check = ctx.work / "smooth.onnx", ParityCheck(seed=ctx.seed, threads=ctx.threads, data=ctx.data)
        with pooling(model.body, model.card.usage):
            export_checked(model.body, inputs, smooth_onnx, check, progress=ctx.progress)
        out = self.place(ctx)
        facts = self.quantized(smooth_onnx, out, inputs, ctx)
        facts |= {"smoothed": smoothed["layers"], "difference": smoothed["difference"], "unsmoothed": left}
        facts["notes"] = [*facts["notes"], _described(smoothed)]
        return self.finished(model, out, facts)


def _described(smoothed: dict[str, Any]) -> str:
    layers = smoothed["layers"].values()
    alphas = sorted({layer["alpha"] for layer in layers})
    if not alphas:
        return "no input needed smoothing"
    span = f"alpha {alphas[0]:g}" if len(alphas) == 1 else f"alpha {alphas[0]:g} to {alphas[-1]:g}"
    folded = sum(layer["folded"] is not None for layer in layers)
    return (
        f"smoothed {len(layers)} layers ({span}), {folded} of them merged into the layer before; float outputs "
        f"changed by {smoothed['difference']:.1g}"
    )
