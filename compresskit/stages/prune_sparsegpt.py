"""``prune.sparsegpt``: weights become zero, and the others make up for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.fields import Damping, Drift
from compresskit.stages.shared_sparse import CalibratedSparse

if TYPE_CHECKING:
    from torch import Tensor

    from compresskit.ops.calibration.moments import Moments


class PruneSparsegpt(CalibratedSparse):
    """SparseGPT: set weights to zero and adjust the others to compensate, on `data`.

    The most accurate of these methods. The model is processed block by block. Each block is calibrated on the outputs
    of the pruned blocks before it.
    """

    method: ClassVar[str] = "sparsegpt"

    drift: Drift = 1.0
    refine: Annotated[
        int,
        Field(ge=0, le=200, description="Least-squares steps on the remaining weights after pruning."),
    ] = 20
    damping: Damping = None

    def run(self, model: Model, ctx: Context) -> Model:
        """Prune a module in place.

        Raises:
            UsageError: There are no calibration data, or a glob matches nothing.
            InputError: The data don't fit the model.
        """
        from compresskit.ops.prune.refit import refit
        from compresskit.ops.prune.sparsegpt import prune_sparsegpt
        from compresskit.ops.prune.unstructured import Calibrated

        pattern = self.zeros()

        def method(_weight: Tensor, target: Tensor, moments: Moments) -> Tensor:
            found = prune_sparsegpt(target, pattern, moments, damping=self.damping)
            return refit(found, target, moments, rounds=self.refine, damping=self.damping)

        return self.prune(model, ctx, Calibrated(method, drift=self.drift))
