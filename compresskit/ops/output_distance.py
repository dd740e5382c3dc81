"""What several methods need to decide whether a step helped: samples apart, and the distance from the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.quantize.sensitivity import apart, floats


def split(batches: Sequence[Batch]) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Most of the batches for fitting, an eighth for looking at the result; all for both where there are few."""
    held = len(batches) // 8
    return (batches[:-held], batches[-held:]) if held else (batches, batches)


def keep_nearest(module: nn.Module, tried: Mapping[str, tuple[float, nn.Module]]) -> dict[str, Any]:
    """Give a module the state of whichever is nearest to the original; the first one tried is the starting point.

    Args:
        module: Changed in place.
        tried: By name the distance, and the module that has it.

    Returns:
        Facts: the distance ``before`` and ``after``, and the name of what was ``kept``.
    """
    best = min(tried, key=lambda name: tried[name][0])
    module.load_state_dict(tried[best][1].state_dict())
    before = next(iter(tried.values()))[0]
    return {"before": round(before, 6), "after": round(tried[best][0], 6), "kept": best}


class OutputDistance:
    """How far a model's outputs are from those of the original.

    Args:
        original: In eval mode.
        batches: Inputs.
        forward: Calls a module with a batch.
        scores: See :func:`~compresskit.ops.quantize.sensitivity.distances`.
    """

    def __init__(self, original: nn.Module, batches: Sequence[Batch], forward: Forward, *, scores: bool) -> None:
        self._batches, self._forward, self._scores = batches, forward, scores
        self._wanted = self._outputs(original)

    def __call__(self, module: nn.Module) -> float:
        """The distance of a module."""
        return apart(self._wanted, self._outputs(module), scores=self._scores)

    @torch.no_grad()
    def _outputs(self, module: nn.Module) -> list[list[Tensor]]:
        return [floats(self._forward(module, batch)) for batch in self._batches]
