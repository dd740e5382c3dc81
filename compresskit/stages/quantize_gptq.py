"""``quantize.gptq``: weight-only, calibrated with the second moments of each layer's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.fields import Damping
from compresskit.stages.formats import Formatted
from compresskit.stages.repaired import Repaired
from compresskit.stages.weight_only import CalibratedWeightOnly

if TYPE_CHECKING:
    from torch import Tensor

    from compresskit.ops.calibration.moments import Moments
    from compresskit.ops.packed.grid import Grid, Packed
    from compresskit.ops.quantize.kept_blocks import KeptBlocks


class QuantizeGptq(Formatted, Repaired, CalibratedWeightOnly):
    """GPTQ: calibrate weights on `data`; weights that are not yet rounded compensate each rounding error.

    The most accurate weight-only method for Linear layers. The model is processed block by block. Each block is
    calibrated on the outputs of the quantized blocks before it. Embeddings are rounded without data.
    """

    method: ClassVar[str] = "gptq"
    keeps_blocks: ClassVar[bool] = True

    drift: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Fraction of the error of earlier layers that is compensated (GPTAQ); 0 halves the time.",
        ),
    ] = 1.0
    order: Annotated[bool, Field(description="Quantize the columns with the largest inputs first (act-order).")] = False
    refine: Annotated[
        int, Field(ge=0, le=20, description="Iterations that refine scales and codes after rounding.")
    ] = 2
    damping: Damping = None
    checkpoint: Annotated[
        Path | None,
        Field(
            exclude=True,
            json_schema_extra={"format": "output-path"},
            description="Folder for the state after each block, and each epoch of training. The same command resumes "
            "from it.",
        ),
    ] = None

    def reads(self, *, data: bool, limited: bool) -> Literal["all", "mapped", "streamed"]:
        """Mapped, unless weights are rotated or training follows."""
        return "all" if self.epochs or self.rotate else "mapped"

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place.

        Raises:
            UsageError: There are no calibration data.
        """
        from compresskit.ops.quantize.calibrated import Method
        from compresskit.ops.quantize.gptq import quantize_gptq
        from compresskit.ops.quantize.refine import refine

        self.check_data(ctx)

        def rounded(weight: Tensor, grid: Grid, moments: Moments) -> Packed:
            packed = quantize_gptq(weight, grid, moments, damping=self.damping, order=self.order)
            if not self.refine:
                return packed
            return refine(weight, packed, moments, rounds=self.refine, damping=self.damping)

        method = Method(rounded, drift=self.drift, kept=self._kept(model, ctx), by_rows=True)
        return self.calibrate(model, ctx, method, samples=self.samples)

    def _kept(self, model: Model, ctx: Context) -> KeptBlocks | None:
        if self.checkpoint is None or ctx.data is None:
            return None
        from compresskit.ops.quantize.kept_blocks import KeptBlocks
        from compresskit.train.state import key_of

        options = {"stage": self.name(), "options": self.options(), "data": ctx.data.fingerprint()}
        seed = {"seed": ctx.seed} if self.rotate else {}
        return KeptBlocks(self.checkpoint, key_of(options | seed, model.module))
