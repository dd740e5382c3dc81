"""What a report says of 8-bit products: on which CPUs they are exact, and what saturation costs where they aren't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit.benchmark import target as targets
from compresskit.errors import CompressKitError
from compresskit.quality.evaluate import evaluate
from compresskit.runner.candidate import Candidate, Int8Arithmetic
from compresskit.runner.measure import Quality
from compresskit.runtimes.saturation import Saturation, analyse
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source


def int8_arithmetic_on(name: str | None) -> Int8Arithmetic:
    """How 8-bit products must be computed for what is measured here to hold on a target.

    Args:
        name: Of the target; None is this machine.

    Raises:
        UsageError: No target has this name.
    """
    there, here = targets.get(name), targets.here()
    if there.saturates == here.saturates:
        return "native"
    return "clipped" if there.saturates else "exact"


def saturation_notes(
    models: Sequence[Candidate], measured: Quality | None, source: Source | None, *, progress: Progress = silent
) -> list[str]:
    """Notes on each model that multiplies 8-bit integers; none for the others.

    Args:
        models: ONNX files among them are looked at.
        measured: What was measured of them; its figures are those of ``Candidate.int8_arithmetic``.
        source: The data it was measured on.
        progress: Called after each batch, where a model whose products were clipped is measured without.
    """
    notes = []
    distinct: dict[tuple[Path, str], Candidate] = {}
    for model in models:
        if model.path.suffix == ".onnx":
            distinct.setdefault((model.path, model.runtime), model)
    for model in distinct.values():
        try:
            found = analyse(model.path, model.runtime)
        except CompressKitError:  # another engine opened it, and how that multiplies isn't known
            continue
        if found.layers or found.branches:
            prefix = f"{model.name}: " if len(models) > 2 else ""
            notes.append(prefix + _exactness(found) + _cost(model, found, measured, source, progress))
    return list(dict.fromkeys(notes))


def _exactness(found: Saturation) -> str:
    if found.branches:
        return (
            "8-bit products are exact on x86 with VNNI, on Arm and on GPUs; on x86 without VNNI they may saturate: "
            "those behind early exits were not looked at"
        )
    if not found.risky:
        return "8-bit products are exact on every CPU: no two weights can saturate"
    here = " (as here)" if targets.here().saturates else ""
    return (
        f"8-bit products are exact on x86 with VNNI, on Arm and on GPUs; on x86 without VNNI{here} they can "
        f"saturate in {len(found.risky)} of {found.layers} layers"
    )


def _cost(
    model: Candidate, found: Saturation, measured: Quality | None, source: Source | None, progress: Progress
) -> str:
    """What follows the note: the figure there and here where it was measured, else how to get it."""
    if found.branches or not found.risky:
        return ""
    if model.int8_arithmetic == "native":
        what, there = ("the exact ones", "x86-vnni") if targets.here().saturates else ("that", "x86-avx2")
        return f": measure {what} with evaluate `target` {there}"
    if model.int8_arithmetic != "clipped" or measured is None or measured.metric is None or source is None:
        return ""
    score = measured.scores.get(model.name)
    if score is None:
        return ""
    own = evaluate(replace(model, int8_arithmetic="native").open(), source, measured.metric, progress=progress)
    unit = f" {score.unit}" if score.unit else ""
    return f": {score.metric} there {score.value:.3f}{unit}, here {own.value:.3f}{unit}"
