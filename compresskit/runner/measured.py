"""Figures of two models that were measured beside others, so that they needn't be measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from compresskit.report import Distribution, Measurement
from compresskit.runner.candidate import Candidate
from compresskit.runner.measure import Quality
from compresskit.runner.timing import Speed
from compresskit.runner.why_slower import slower

T = TypeVar("T", Measurement, Distribution)


@dataclass(frozen=True)
class Measured:
    """What was found of an original and of one of the models that it was compared with.

    Attributes:
        baseline: Name of the original there.
        model: Name of the other.
        quality: Of all models, on evaluation data.
        speed: Of all models, all taking turns; None where nothing was timed.
    """

    baseline: str
    model: str
    quality: Quality
    speed: Speed | None

    def quality_of(self, models: Sequence[Candidate]) -> Quality:
        """The quality of the two under their own names, the original first."""
        names, found = self._names(models), self.quality
        return replace(
            found,
            scores={names[name]: score for name, score in found.scores.items() if name in names},
            drops={names[name]: drop for name, drop in found.drops.items() if name in names},
            broken={names[name]: why for name, why in found.broken.items() if name in names},
            measurements=_renamed(found.measurements, names),
        )

    def speed_of(self, models: Sequence[Candidate]) -> Speed | None:
        """The speed of the two under their own names, the original first; None where nothing was timed."""
        if self.speed is None:
            return None
        names = self._names(models)
        measurements = _renamed(self.speed.measurements, names)
        return Speed(
            measurements, _renamed(self.speed.latencies, names),
            notes=[*slower(models, measurements), *self.speed.noise], noise=self.speed.noise,
        )  # fmt: skip

    def _names(self, models: Sequence[Candidate]) -> dict[str, str]:
        return {self.baseline: models[0].name, self.model: models[1].name}


def _renamed(lines: Sequence[T], names: Mapping[str, str]) -> list[T]:
    return [line.model_copy(update={"model": names[line.model]}) for line in lines if line.model in names]
