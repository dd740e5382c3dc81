"""``quantize.rtn``: weight-only rounding, no data needed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from compresskit.checkpoint.bundle import weights_metadata
from compresskit.errors import UsageError
from compresskit.model import Applied, Model
from compresskit.stage import Context, Form
from compresskit.stages.formats import Formatted
from compresskit.stages.repaired import Repaired

if TYPE_CHECKING:
    from torch import Tensor

    from compresskit.ops.calibration.moments import Moments
    from compresskit.ops.packed.grid import Grid, Packed


class QuantizeRtn(Formatted, Repaired):
    """Round weights to nearest in 2 to 8 bits, with the range of each group clipped for the least squared error.

    Linear and Embedding weights get a scale per group, convolutions one per output channel. Activations stay in
    floating point. Needs no data and works on a bare state dict.
    """

    method: ClassVar[str] = "rtn"
    takes: ClassVar[tuple[Form, ...]] = ("torch", "weights")

    clip: Annotated[
        bool,
        Field(description="Search the range of each group with the least squared error. Off: plain rounding, faster."),
    ] = True

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place, or the tensors of a file one by one into ``ctx.work``.

        Raises:
            UsageError: A repair of tensors without an architecture.
        """
        from compresskit.ops.quantize.rtn import quantize_rtn

        if not isinstance(model.body, Path):
            algorithm = partial(quantize_rtn, clip=self.clip)

            def calibrated(weight: Tensor, grid: Grid, _moments: Moments) -> Packed:
                return algorithm(weight, grid)

            return self.round_free(model, ctx, algorithm, calibrated)
        if self.rank:
            raise UsageError("`repair` and `epochs` need the architecture", "give `arch` FILE.py:NAME")
        if self.rotate:
            raise UsageError("`rotate` needs the architecture", "give the Hugging Face folder of the model")
        if ctx.ranks.size > 1:
            raise UsageError(
                "several processes can't share tensors without an architecture", "give `arch`, or start one process"
            )
        card = model.card.after(Applied(self.name(), self.options()))
        facts, skipped, path = self._stream(model, model.body, weights_metadata(card), ctx)
        return self.recorded(replace(model, body=path), facts, skipped)

    def _stream(
        self, model: Model, path: Path, metadata: dict[str, str], ctx: Context
    ) -> tuple[dict[str, Any], dict[str, str], Path]:
        from compresskit.checkpoint.safetensors_writer import Entry, write_safetensors
        from compresskit.checkpoint.tensors import open_tensors
        from compresskit.ops.quantize.stream import Quantizer, plan

        tensors = open_tensors(path, allow_nonfinite=True, key=model.key if path == model.source else None)
        chosen = plan(tensors, self.selection())
        quantizer = Quantizer(tensors, chosen, clip=self.clip, progress=ctx.progress)
        out = ctx.work / "model.safetensors"
        write_safetensors(out, (Entry(*entry) for entry in quantizer.entries()), metadata)
        return quantizer.facts(), chosen.skipped, out
