"""What pruning and factorizing share: what a model is calibrated on, and what the user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.globs import left_out


@dataclass(frozen=True)
class CalibrationData:
    """What a model is run on, and how.

    Attributes:
        example: Inputs of one small batch.
        batches: Calibration data; empty without any.
        forward: Calls a module with a batch.
        scores: The model's output holds scores of classes or tokens.
        labels: int64 class of each sample, by batch; None where there are none.
    """

    example: Batch
    batches: Sequence[Batch]
    forward: Forward
    scores: bool = False
    labels: Sequence[Tensor] | None = None

    def run(self, module: nn.Module) -> Any:
        """Call a module with the example."""
        return self.forward(module, self.example)


@dataclass(frozen=True, kw_only=True)
class ShrinkSettings:
    """What the user asked for, apart from the target.

    Attributes:
        multiple: Widths or ranks are multiples of this.
        include: Globs of layers that may be changed; empty: all.
        exclude: Globs of layers that may not; stronger.
        refit: Fit the model's layers again; needs data.
        seed: Of what is drawn: directions, channels to try.
    """

    multiple: int = 8
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    refit: bool = True
    seed: int = 0

    @property
    def globs(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.include, *self.exclude)

    def left_out(self, name: str) -> str:
        """Why the globs leave a layer as it is; empty where they don't."""
        return left_out(name, self.include, self.exclude)
