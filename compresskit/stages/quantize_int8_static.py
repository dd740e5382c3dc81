"""``quantize --method int8-static``: weights and activations in 8 bit, ranges from calibration data."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from compresskit.errors import UsageError
from compresskit.model import Applied, Model, portable
from compresskit.stage import Context, Stage


def native_format() -> dict[str, Any]:
    """The signedness that this machine's CPU multiplies fastest without saturating."""
    from compresskit.bench.machine import has_vnni

    if platform.machine().lower() in ("arm64", "aarch64"):
        return {"activation": "int8", "weight": "int8", "reduce_range": False}
    return {"activation": "uint8", "weight": "int8", "reduce_range": not has_vnni()}


class QuantizeInt8Static(Stage):
    """Weights and activations in 8 bit; activation ranges are calibrated on ``--data``. Fast on CPUs.

    The ONNX graph gets QuantizeLinear/DequantizeLinear pairs. Signedness follows this machine's CPU: on x86 unsigned
    activations and signed weights (7 bits where it has no VNNI, so that products can't saturate), on Arm both signed.
    """

    stage: ClassVar[str] = "quantize"
    method: ClassVar[str] = "int8-static"
    takes: ClassVar = ("onnx",)
    gives: ClassVar = "onnx"
    needs: ClassVar = ("calibration",)

    bits: Annotated[Literal[8], Field(description="Bits of a weight and of an activation.")] = 8
    samples: Annotated[int, Field(ge=1, description="Calibration samples taken from --data.")] = 512
    calibration: Annotated[
        Literal["minmax", "percentile", "entropy"], Field(description="How activation ranges are found.")
    ] = "minmax"
    per_channel: Annotated[bool, Field(description="A scale for each output channel of a weight.")] = True

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize the ONNX file of ``model`` into ``ctx.work``.

        Raises:
            UsageError: There is no calibration data.
            InputError: The data doesn't fit, or the graph can't be quantized.
        """
        from compresskit.checkpoint.bundle import ONNX_NAME
        from compresskit.export.int8 import quantize_static_int8

        if ctx.data is None:
            raise UsageError("quantize --method int8-static needs calibration data", "give --data FILE")
        if not isinstance(model.body, Path):
            raise TypeError("the runner exports the module first")
        chosen = native_format()
        folder = ctx.work / "int8"
        folder.mkdir()
        out = folder / ONNX_NAME
        batches = (b.inputs for b in ctx.data.batches(32, min(self.samples, len(ctx.data))))
        facts = quantize_static_int8(
            model.body,
            out,
            batches,
            per_channel=self.per_channel,
            **chosen,
            method=self.calibration,
            progress=ctx.progress,
        )
        skipped = facts.pop("skipped", {})
        calibrated = {
            "data": portable(ctx.data.name),
            "samples": min(self.samples, len(ctx.data)),
            "sha256": ctx.data.fingerprint(),
        }
        weight = f"{chosen['weight']}{' of 7 bits' if chosen['reduce_range'] else ''}"
        note = (
            f"activations {chosen['activation']}, weights {weight}, as "
            f"this CPU multiplies fastest; ranges ({self.calibration}) from {calibrated['samples']} samples of "
            f"{calibrated['data']}"
        )
        facts = {**facts, "format": chosen, "calibration": calibrated, "notes": [note]}
        applied = Applied(self.name(), self.options(), facts, skipped)
        return Model(out, model.card.after(applied), model.source)
