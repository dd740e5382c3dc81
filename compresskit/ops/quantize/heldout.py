"""A quality limit, checked on calibration samples that calibration itself doesn't use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from compresskit.data.parts import rest as behind
from compresskit.data.source import Source
from compresskit.model import InputSpec
from compresskit.quality.drop import parse_drop, within
from compresskit.quality.evaluate import evaluate
from compresskit.quality.forward import NonFiniteOutput, forward
from compresskit.quality.metrics import pick
from compresskit.runtimes.torch import TorchSession

LEAST = 64
"""Samples below which a figure says too little to choose by."""


def limit_on(
    module: nn.Module,
    inputs: tuple[InputSpec, ...],
    source: Source,
    *,
    skip: int,
    limit: int,
    task: str,
    max_drop: str,
) -> Callable[[nn.Module], tuple[bool, str]] | None:
    """A function that says whether a changed module keeps a quality limit, and its figures.

    Args:
        module: The original, in eval mode.
        inputs: What it takes.
        source: Calibration data.
        skip: Samples left to calibration.
        limit: Samples to measure on.
        task: From the model's card.
        max_drop: As ``0.5pt`` or ``1%``.

    Returns:
        None where the data say no quality: too few samples, no labels and no language model.

    Raises:
        InputError: Data and model don't fit.
    """
    if len(source) - skip < LEAST:
        return None
    rest = behind(source, skip)
    session = TorchSession(module, "the model", inputs)
    forward(session, _first(rest), 1)
    metric = pick(rest, session.outputs, task)
    if metric is None:
        return None
    allowed = parse_drop(max_drop)
    baseline = evaluate(session, rest, metric, limit=limit)

    def keeps(changed: nn.Module) -> tuple[bool, str]:
        try:
            found = evaluate(TorchSession(changed, "the model", inputs), rest, metric, limit=limit)
        except NonFiniteOutput:
            return False, "outputs aren't finite"
        passed, _ = within(allowed, baseline.value, found.value, metric.higher_is_better)
        return bool(passed), f"{metric.name} {baseline.value:.2f} → {found.value:.2f} on {found.n} samples"

    return keeps


def _first(source: Source) -> dict[str, np.ndarray]:
    return next(iter(source.batches(1, 1))).inputs
