"""A quality limit, checked on calibration samples that calibration itself doesn't use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from compresskit.data.source import Batch, Source
from compresskit.model import InputSpec
from compresskit.quality.drop import parse_drop, within
from compresskit.quality.evaluate import evaluate
from compresskit.quality.forward import NonFiniteOutput, forward
from compresskit.quality.metrics import pick
from compresskit.runtimes.torch import TorchSession

LEAST = 64
"""Samples below which a figure says too little to choose by."""


@dataclass
class Rest:
    """A source without its first samples; pairs count as one sample."""

    source: Source
    skip: int

    def __post_init__(self) -> None:
        self.name, self.kind, self.labelled = self.source.name, self.source.kind, self.source.labelled

    def __len__(self) -> int:
        return max(0, len(self.source) - self.skip)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches of at most ``size`` samples, of the first ``limit`` after those left out."""
        rows, skip = (2 if self.kind == "pairs" else 1), self.skip
        for batch in self.source.batches(size, None if limit is None else self.skip + limit):
            count = len(next(iter(batch.inputs.values()))) // rows
            cut, skip = min(skip, count), max(0, skip - count)
            if cut < count:
                yield replace(
                    batch,
                    inputs={name: value[cut * rows :] for name, value in batch.inputs.items()},
                    targets=None if batch.targets is None else batch.targets[cut:],
                )

    def fingerprint(self) -> str:
        """That of the whole source: this one is never on record."""
        return self.source.fingerprint()


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
