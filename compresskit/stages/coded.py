"""What all methods do that put codes of few bits in the place of weights, whatever their options."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from compresskit.facts.quantize import QuantizeFacts
from compresskit.kinds import QUANTIZE
from compresskit.model import Model
from compresskit.ranks import ALONE, Ranks
from compresskit.stage import Context, Form, Stage
from compresskit.stages.batches import calibration

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.quantize.calibrated import Method
    from compresskit.ops.quantize.select import Selection

BATCH = 32


class CodedWeights(Stage):
    """Weights as codes; activations stay floating point."""

    kind: ClassVar = QUANTIZE
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar[type[QuantizeFacts]] = QuantizeFacts

    @property
    def promises_speed(self) -> bool:
        """A smaller file alone: what runs faster on these codes depends on runtime, shapes and machine."""
        return False

    @abstractmethod
    def selection(self) -> Selection:
        """The options as the algorithm takes them."""

    def coded(
        self,
        model: Model,
        ctx: Context,
        method: Method,
        selection: Selection,
        *,
        samples: int,
        batch: int = BATCH,
        ranks: Ranks = ALONE,
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Quantize a module in place with the context's data.

        Args:
            model: Its body is a module.
            ctx: With data; without it every layer is quantized data-free.
            method: The algorithm, with its options.
            selection: Which layers, and their grids.
            samples: Most calibration samples.
            batch: Samples worked on at once.
            ranks: Processes that share the work.

        Returns:
            The facts, and the layers left alone with the reason.

        Raises:
            InputError: The data don't fit the model.
        """
        from compresskit.ops.quantize.calibrated import quantize_calibrated
        from compresskit.stages.batches import batches_of, forward_of

        module = model.module.eval()
        about: dict[str, Any] = {}
        notes: list[str] = []
        batches = []
        if ctx.data is not None:
            count = min(samples, len(ctx.data))
            batches = batches_of(ctx.data, model.card.inputs, batch, count)
            about = calibration(ctx.data, count)
            notes.append(f"calibrated on {count} sample{'s' if count > 1 else ''} of {about['data']}")
            if count == 1:
                notes.append("one calibration sample is not representative: give more")
        forward = forward_of(module, model.card.inputs)
        facts, skipped = quantize_calibrated(module, selection, method, batches, forward, ctx.progress, ranks)
        facts["notes"] = notes + facts["notes"]
        if about:
            facts["calibration"] = about
        return facts, skipped

    @classmethod
    def replay(cls, module: nn.Module, facts: QuantizeFacts, tensors: Tensors) -> Tensors:
        """Put empty packed layers in the place of the quantized ones."""
        from compresskit.ops.packed.unpacking import Unpacked
        from compresskit.ops.quantize.weights import replay

        plain = replay(module, facts)
        return Unpacked(tensors, plain) if plain else tensors
