"""``quantize.gptq``: weight-only, calibrated with the second moments of each layer's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.coded import BATCH
from compresskit.stages.fields import Damping
from compresskit.stages.formats import Formatted
from compresskit.stages.repaired import Repaired
from compresskit.stages.weight_only import CalibratedWeightOnly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from compresskit.ops.calibration.moments import Moments
    from compresskit.ops.calibration.sequential import Segment
    from compresskit.ops.packed.grid import Grid, Packed
    from compresskit.ops.quantize.calibrated import Tune
    from compresskit.ops.quantize.kept_blocks import KeptBlocks

_TUNED = 8
"""Samples of a step of tuning."""


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
    tune: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Optimization steps per block, with 8 samples each, that refine codes and scales against the "
            "block's output afterwards (SignRound). 200 take minutes; they pay off most at 2 and 3 bits.",
        ),
    ] = 0
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

    @model_validator(mode="after")
    def _tunes(self) -> QuantizeGptq:
        if self.tune and self.weight_format != "linear":
            raise UsageError("`tune` can't be combined with `weight_format` k-quant")
        return self

    def reads(self, *, data: bool, limited: bool) -> Literal["all", "mapped", "streamed"]:
        """Mapped, unless weights are rotated or tuned, or training follows."""
        return "all" if self.epochs or self.rotate or self.tune else "mapped"

    def splits(self, *, data: bool, limited: bool) -> bool:
        """Layer by layer; tuning takes those of a block together."""
        return not self.tune and super().splits(data=data, limited=limited)

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

        tune = self._tuning(ctx) if self.tune else None
        method = Method(rounded, drift=self.drift, kept=self._kept(model, ctx), by_rows=True, tune=tune)
        return self.calibrate(model, ctx, method, samples=self.samples, batch=_TUNED if self.tune else BATCH)

    def _tuning(self, ctx: Context) -> Tune:
        from compresskit.ops.quantize.reconstruct import Effort, reconstruct

        effort = Effort(self.tune, norm_lr=0.0, seed=ctx.seed, calibrated=True)

        def tune(segment: Segment, start: Mapping[str, Packed], terms: Mapping[str, Tensor]) -> Mapping[str, Packed]:
            if len(start) < 2 and not segment.is_block:
                return start  # a head alone: its outputs are what its codes were calibrated on
            what = f"tune {segment.name or next(iter(start))}"
            return reconstruct(segment, start, effort, lambda done, total: ctx.progress(what, done, total), terms)

        return tune

    def _kept(self, model: Model, ctx: Context) -> KeptBlocks | None:
        if self.checkpoint is None or ctx.data is None:
            return None
        from compresskit.ops.quantize.kept_blocks import KeptBlocks
        from compresskit.train.state import key_of

        options = {"stage": self.name(), "options": self.options(), "data": ctx.data.fingerprint()}
        seed = {"seed": ctx.seed} if self.rotate or self.tune else {}
        return KeptBlocks(self.checkpoint, key_of(options | seed, model.module))
