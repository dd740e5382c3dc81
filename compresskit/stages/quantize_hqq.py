"""``quantize.hqq``: weight-only, no data, ranges that outliers don't pull at."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.repaired import Repaired

if TYPE_CHECKING:
    from torch import Tensor

    from compresskit.ops.calibration.moments import Moments
    from compresskit.ops.packed.grid import Grid, Packed


class QuantizeHqq(Repaired):
    """Round weights with ranges fitted by half-quadratic splitting (HQQ): a few large errors are let be.

    Needs no data. Try it beside rtn where weights have outliers; with calibration data gptq is more exact.
    """

    method: ClassVar[str] = "hqq"

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place."""
        from compresskit.ops.quantize.hqq import quantize_hqq

        def calibrated(weight: Tensor, grid: Grid, _moments: Moments) -> Packed:
            return quantize_hqq(weight, grid)

        return self.round_free(model, ctx, quantize_hqq, calibrated)
