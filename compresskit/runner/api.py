"""The library's verbs: what the command line does, as function calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from compresskit import registry
from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.recipe.limits import Limits
from compresskit.report import Report
from compresskit.runner.judging import Measuring
from compresskit.runner.pipeline import run as run_job
from compresskit.runner.steps import Job
from compresskit.stage import Progress, Stage, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source


def method(name: str, **options: Any) -> Stage:
    """A stage by name: ``method("quantize.rtn", bits=4, exclude=("head",))``.

    Raises:
        UsageError: No such method, or an option that it doesn't have or accept.
    """
    try:
        return registry.get(name)(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "options"
        raise UsageError(f"{name}: {where}={first['input']!r}: {first['msg']}") from error


def run(
    model: Model,
    stages: Sequence[Stage],
    output: str | Path,
    *,
    data: Source | None = None,
    eval_data: Source | None = None,
    metric: str | None = None,
    max_drop: str | None = None,
    max_size: str | None = None,
    min_speedup: float | None = None,
    export: bool = True,
    bench: bool = True,
    threads: int = 0,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Apply stages to a model, write a bundle, and judge it; see :func:`compresskit.runner.pipeline.run`.

    Args:
        model: From :func:`compresskit.load`; not to be used afterwards.
        stages: From :func:`method`, in order.
        output: Folder of the bundle.
        data: Calibration data, from :func:`compresskit.data.opening.open_source`.
        eval_data: What the verdict is measured on.
        metric: Name or ``FILE.py:NAME``.
        max_drop: ``0.5pt`` or ``1%``.
        max_size: ``20MB``.
        min_speedup: 1.2 is 20 % faster.
        export: Write ONNX; nothing runs without it.
        bench: Measure the speed.
        threads: Of one operator; 0 is all cores.
        seed: Of every random choice.
        force: Replace an output that is there.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The report, also in ``output/report.json``.
    """
    measuring = Measuring(
        source=eval_data,
        metric=metric,
        limits=Limits(max_drop, max_size, min_speedup),
        export=export,
        bench=bench,
        threads=threads,
        seed=seed,
    )
    return run_job(model, Job.of(stages, Path(output), data, measuring, force=force, progress=progress))
