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
    """HQQ: fit scales and zero points by half-quadratic splitting, which tolerates a few large errors. Needs no data.

    Try it next to rtn for weights with outliers. With calibration data gptq is more accurate.
    """

    method: ClassVar[str] = "hqq"

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place."""
        from compresskit.ops.quantize.hqq import quantize_hqq

        def calibrated(weight: Tensor, grid: Grid, _moments: Moments) -> Packed:
            return quantize_hqq(weight, grid)

        return self.round_free(model, ctx, quantize_hqq, calibrated)
