"""What calibrated quantization of a model will cost in time, from one timed forward pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_GPTQ_PASSES = 5.0
"""Forward passes a sample costs: some for each block's groups of layers, in the original and the quantized stream."""
_GPTQ_RATE = 1e9
"""Multiplications a second of the column by column work, as measured on two cores."""
_STEP_PASSES = 4.0
"""Forward passes that a learning step costs for each of its samples: forward, backward, and the update."""


@dataclass(frozen=True)
class Work:
    """What there is to quantize.

    Attributes:
        convolutions: Share of the weights that convolutions hold, 0 to 1.
        products: Sum over the layers of outputs × columns².
    """

    convolutions: float
    products: float


def work_of(layers: Mapping[str, nn.Module]) -> Work:
    """Measure the layers that will be quantized."""
    shapes = [tuple(layer.get_parameter("weight").shape) for layer in layers.values()]
    sizes = [math.prod(shape) for shape in shapes]
    convolved = sum(size for shape, size in zip(shapes, sizes, strict=True) if len(shape) > 2)
    matrices = [
        tuple(layer.get_parameter("weight").shape) for layer in layers.values() if not isinstance(layer, nn.Embedding)
    ]
    return Work(convolved / max(1, sum(sizes)), sum(float(s[0]) * math.prod(s[1:]) ** 2 for s in matrices))


@torch.no_grad()
def seconds_a_sample(
    module: nn.Module, batch: dict[str, torch.Tensor], forward: Callable[[nn.Module, Any], Any]
) -> float:
    """Seconds that one sample takes in a forward pass of a batch; the first pass, which warms up, isn't timed."""
    forward(module, batch)
    start = time.perf_counter()
    forward(module, batch)
    return (time.perf_counter() - start) / max(1, len(next(iter(batch.values()))))


def gptq_seconds(work: Work, a_sample: float, samples: int) -> float:
    """Seconds of calibrated rounding."""
    return _GPTQ_PASSES * a_sample * samples + work.products / _GPTQ_RATE


def adaround_seconds(work: Work, a_sample: float, samples: int, steps: int, batch: int) -> float:
    """Seconds of learnt rounding; each block takes its share of a forward pass."""
    return _STEP_PASSES * a_sample * steps * batch + gptq_seconds(work, a_sample, samples)


def duration(seconds: float) -> str:
    """For people: ``20 s``, ``3 min``."""
    if seconds < 90:
        return f"{max(5, 5 * math.ceil(seconds / 5))} s"
    return f"{math.ceil(seconds / 60)} min"
