"""What the similarity of a result to its original is measured on, where there is no evaluation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compresskit.data.parts import rest
from compresskit.model import Applied, portable
from compresskit.quality.synthetic import synthetic_inputs
from compresskit.runner.candidate import Candidate
from compresskit.runtimes.base import Session

if TYPE_CHECKING:
    from compresskit.data.source import Source

MOST = 256
"""Samples that two models' outputs are compared on."""
_FEWEST = 16
"""Unseen samples below which the seen ones say more."""
_SYNTHETIC = 64


@dataclass(frozen=True)
class LikenessData:
    """Samples, and what a reader must know of them: ``the first 256 samples of test.npz``."""

    source: Source
    about: str


def evaluation_samples(source: Source) -> LikenessData:
    """The first of the evaluation data."""
    return LikenessData(source, f"the first {MOST} samples of {portable(source.name)}")


def made_up_samples(model: Candidate, session: Session, seed: int) -> LikenessData:
    """Noise of the shape that a model takes."""
    source = synthetic_inputs(model.inputs or session.inputs, _SYNTHETIC, seed=seed)
    return LikenessData(source, f"{_SYNTHETIC} random inputs")


def samples_of(data: Source | None, done: Sequence[Applied]) -> LikenessData | None:
    """Samples of the data that the stages were given: those behind the ones that they looked at, where there are any.

    Args:
        data: Calibration or training data.
        done: What was done to the model with it.

    Returns:
        None without data.
    """
    if data is None:
        return None
    name, total, used = portable(data.name), len(data), _used(data, done)
    if total - used >= _FEWEST:
        source, what = rest(data, used), "that no stage was fitted to"
    else:
        source, what = data, "that the result was fitted to: give `eval_data` for an independent measurement"
    count = min(MOST, len(source))
    return LikenessData(source, f"{count} samples of {name} {what}")


def _used(data: Source, done: Sequence[Applied]) -> int:
    """How many of the first samples were looked at; training may pick any."""
    if any("training" in applied.facts for applied in done):
        return len(data)
    return max((applied.facts.get("calibration", {}).get("samples", 0) for applied in done), default=0)
