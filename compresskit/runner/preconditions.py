"""What can be known to be wrong before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit import registry
from compresskit.checkpoint.atomic import refuse_same, refuse_within
from compresskit.model import Model
from compresskit.recipe.head import OUTPUT
from compresskit.recipe.naming import named_by
from compresskit.recipe.order import Start, check_measured, misfits
from compresskit.runner.judging import Measuring
from compresskit.runner.stage_runner import form
from compresskit.stage import MODEL, Stage

if TYPE_CHECKING:
    from compresskit.data.source import Source


def check(model: Model, stages: Sequence[Stage], data: Source | None, measuring: Measuring) -> None:
    """Refuse stages, data and limits that don't go together.

    Args:
        model: What the first of the stages works on.
        stages: In order.
        data: Calibration and training data.
        measuring: What the verdict is measured with.

    Raises:
        UsageError: Says what doesn't fit.
    """
    start = start_of(model)
    evaluated, export = measuring.source is not None, measuring.export
    check_measured(start, measuring.limits, evaluated=evaluated, benched=measuring.bench, export=export)
    for _, error in misfits(start, stages, data=data is not None, export=export):
        raise error


def check_output(output: Path, origin: Path, stages: Sequence[Stage]) -> None:
    """Refuse an output that would hurt what is read, or what a training keeps.

    Args:
        output: The folder to write.
        origin: MODEL.
        stages: Their teachers and their states are not to be touched.

    Raises:
        UsageError: The output is, holds or lies in one of them.
    """
    refuse_same(origin, output)
    for stage in stages:
        named = stage.learns_from
        if named is not None and named.model != MODEL:
            refuse_same(Path(named.model), output)
        for state in named_by(stage, OUTPUT):
            refuse_within(Path(state), output)


def start_of(model: Model) -> Start:
    """What the order of stages depends on."""
    now, history = form(model), model.card.history
    adapters = False
    for applied in history if now == "torch" else ():
        merged = applied.name in registry.rows() and registry.get(applied.name).takes_adapters
        adapters = not merged and (adapters or applied.facts.get("adapters") is not None)
    done = tuple(applied.name for applied in history)
    return Start(now, str(model.source), done, adapters, folder=model.source.is_dir())
