"""``quantize.adaround``: weight-only, the rounding of each block learnt against the block's output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from compresskit.errors import listing
from compresskit.model import Model
from compresskit.stage import Context
from compresskit.stages.fields import Samples
from compresskit.stages.weight_only import CalibratedWeightOnly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compresskit.ops.calibration.sequential import Segment
    from compresskit.ops.packed.grid import Packed

BATCH = 32


class QuantizeAdaround(CalibratedWeightOnly):
    """AdaRound: learn for each weight whether to round up or down, block by block, on unlabelled `data`.

    The most accurate method for convolutions at 4 bits and fewer. It works on Linear layers too. Takes minutes, see
    `steps`. Scales, biases and the affine parameters of normalization layers are trained as well.
    """

    method: ClassVar[str] = "adaround"

    samples: Samples = 1024
    steps: Annotated[
        int,
        Field(
            ge=1,
            description="Optimization steps per block, with 32 samples each. More steps are slower and "
            "slightly more accurate.",
        ),
    ] = 500
    tune_norm: Annotated[
        bool, Field(description="Also learn biases and the affine parameters of normalization layers.")
    ] = True
    edge_bits: Annotated[
        Literal[2, 3, 4, 8] | None,
        Field(
            description="Bits of the first and the last layer. (8 if `bits` is below 4 and they hold less than a "
            "tenth of the weights)"
        ),
    ] = None
    equalize: Annotated[
        bool,
        Field(description="First equalize the weight ranges between convolutions. The float model does not change."),
    ] = False
    recalibrate: Annotated[bool, Field(description="Re-estimate the statistics of batch normalization at the end.")] = (
        False
    )

    def run(self, model: Model, ctx: Context) -> Model:
        """Quantize a module in place.

        Raises:
            UsageError: There are no calibration data.
        """
        from compresskit.ops.quantize.opened import opened

        self.check_data(ctx)
        with opened(model.module):
            return self._run(model, ctx)

    def _run(self, model: Model, ctx: Context) -> Model:
        from compresskit.ops.batchnorm import recalibrate
        from compresskit.ops.globs import matches
        from compresskit.ops.quantize.calibrated import Method
        from compresskit.ops.quantize.edges import edge_layers
        from compresskit.ops.quantize.equalize import equalize
        from compresskit.ops.quantize.gptq import quantize_gptq
        from compresskit.ops.quantize.reconstruct import Effort, reconstruct
        from compresskit.ops.quantize.weights import plan_layers
        from compresskit.stages.batches import batches_of, forward_of

        if isinstance(model.body, Path) or ctx.data is None:
            raise TypeError("a module and data are needed")
        module, forward = model.body.eval(), forward_of(model.body, model.card.inputs)
        first = batches_of(ctx.data, model.card.inputs, BATCH, BATCH)[0]
        notes: list[str] = []
        if self.equalize:
            pairs = equalize(module, forward, first)
            notes.append(f"{len(pairs)} pairs of layers equalized")
        plan = plan_layers(module, self.selection())
        edges = edge_layers(module, forward, first, most=0.1 if self.edge_bits is None else 1.0)
        named = [text.rpartition("=")[0] for text in self.layer_bits]
        edges = [name for name in edges if name in plan.layers and name not in plan.ties and not matches(name, named)]
        bits = self.edge_bits or (8 if self.bits < 4 else self.bits)
        effort = Effort(self.steps, norm_lr=1e-3 if self.tune_norm else 0.0, seed=ctx.seed)

        def learn(segment: Segment, start: Mapping[str, Packed]) -> Mapping[str, Packed]:
            what = f"reconstruct {segment.name or next(iter(start))}"
            return reconstruct(segment, start, effort, lambda done, total: ctx.progress(what, done, total))

        chosen = self.model_copy(
            update={"layer_bits": (*(f"{n}={bits}" for n in edges if bits != self.bits), *self.layer_bits)}
        )
        done = chosen.calibrate(model, ctx, Method(quantize_gptq, learn=learn), samples=self.samples, batch=BATCH)
        if self.recalibrate:
            batches = batches_of(ctx.data, model.card.inputs, BATCH, min(self.samples, len(ctx.data)))
            notes.append(
                f"statistics of {recalibrate(module, forward, batches)} batch normalizations were re-estimated"
            )
        facts = done.card.history[-1].facts
        found = {name: facts["layers"].get(name, {}).get("bits") for name in edges}
        widened = [name for name in edges if found[name] == bits != self.bits]
        if widened:
            notes.append(f"first and last layer at {bits} bit: {listing(widened)}")
        facts["notes"] += notes
        return done
