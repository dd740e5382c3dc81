"""``quantize.awq``: weight-only, columns scaled by the inputs that they meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.formats import Formatted
from compresskit.stages.repaired import Repaired
from compresskit.stages.weight_only import CalibratedWeightOnly

if TYPE_CHECKING:
    from torch import Tensor

    from compresskit.ops.calibration.moments import Moments
    from compresskit.ops.packed.grid import Grid, Packed


class QuantizeAwq(Formatted, Repaired, CalibratedWeightOnly):
    """AWQ: scale the columns with large inputs before rounding, by a power that is searched on `data`.

    It overfits less than gptq on few samples, and is less accurate on many. Scales are merged into the preceding
    normalization layer where that is exact.
    """

    method: ClassVar[str] = "awq"

    refine: Annotated[
        int, Field(ge=0, le=20, description="Iterations that refine scales and codes after rounding.")
    ] = 0

    def reads(self, *, data: bool, limited: bool) -> Literal["all", "mapped", "streamed"]:
        """Mapped, unless weights are rotated or training follows."""
        return "all" if self.epochs or self.rotate else "mapped"

    def splits(self, *, data: bool, limited: bool) -> bool:
        """Not: scales that differed between two machines in the last digit would spoil the layers of one."""
        return False

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place.

        Raises:
            UsageError: There are no calibration data.
        """
        from compresskit.ops.quantize.awq import quantize_weighted
        from compresskit.ops.quantize.calibrated import Method
        from compresskit.ops.quantize.refine import refine

        self.check_data(ctx)

        def rounded(weight: Tensor, grid: Grid, moments: Moments) -> Packed:
            packed = quantize_weighted(weight, grid, moments)
            return refine(weight, packed, moments, rounds=self.refine) if self.refine else packed

        return self.calibrate(model, ctx, Method(rounded, scale=True), samples=self.samples)
