"""``prune.wanda``: weights that matter least for what their layer takes in become zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.shared_sparse import CalibratedSparse

if TYPE_CHECKING:
    from torch import Tensor

    from compresskit.ops.calibration.moments import Moments


class PruneWanda(CalibratedSparse):
    """Wanda: set the weights with the smallest magnitude times input norm to zero, on `data`.

    Other weights do not change. Fast, and designed for Linear layers. Magnitude is better for convolutions, and
    sparsegpt is better for both. Biases compensate the mean of the error.
    """

    method: ClassVar[str] = "wanda"

    def run(self, model: Model, ctx: Context) -> Model:
        """Prune a module in place.

        Raises:
            UsageError: There are no calibration data, or a glob matches nothing.
            InputError: The data don't fit the model.
        """
        from compresskit.ops.prune.unstructured import Calibrated
        from compresskit.ops.prune.wanda import prune_wanda

        pattern = self.zeros()

        def method(weight: Tensor, _target: Tensor, moments: Moments) -> Tensor:
            return prune_wanda(weight, pattern, moments)

        return self.prune(model, ctx, Calibrated(method, drift=0.0, centred=False))
