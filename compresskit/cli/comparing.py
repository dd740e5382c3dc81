"""What evaluate, bench and compare share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.cli.option_groups import Earlier, Evaluating, Reading, Showing

if TYPE_CHECKING:
    from compresskit.runner.compare import Comparison
    from compresskit.runner.judging import Measuring

_NOTHING, _NO_BASELINE = Evaluating(), Earlier()


def engine_names(typed: Sequence[str], *, allow_auto: bool) -> list[str]:
    """The runtimes of ``--runtime``, each one once; commas part them.

    Args:
        typed: As typed, an item for each option.
        allow_auto: ``auto`` may stand alone.

    Raises:
        MachineError: A runtime isn't installed.
        UsageError: A name isn't known, or ``auto`` is not alone or not for this command.
    """
    from compresskit.errors import UsageError
    from compresskit.runtimes import get, names
    from compresskit.runtimes.base import require

    found = list(dict.fromkeys(name.strip() for text in typed for name in text.split(",")))
    if "auto" in found:
        if not allow_auto:
            raise UsageError("--runtime auto is for bench", f"name one of {', '.join(names())}")
        if len(found) > 1:
            raise UsageError("--runtime auto stands alone", "remove the other --runtime")
        return found
    for name in found:
        require(get(name))
    return found


def compare_models(
    models: Sequence[Path],
    measuring: Measuring,
    how: Comparison,
    *,
    reading: Reading,
    showing: Showing,
    evaluating: Evaluating = _NOTHING,
    earlier: Earlier = _NO_BASELINE,
) -> int:
    """Measure models as they are and show the report.

    Args:
        models: As typed, the baseline first.
        measuring: All of it but the data.
        how: All of it but the arguments of ``load``; runtimes as typed.
        reading: The options of these names; so are the others.
        showing: Where the report goes.
        evaluating: The data and the metric.
        earlier: The report of an earlier run.

    Returns:
        The exit code.
    """
    from compresskit.cli.console import progressing
    from compresskit.cli.inputs import command_line
    from compresskit.data.windows import window_of
    from compresskit.runner.check import check
    from compresskit.runner.compare import Interrupted, check_comparison, compare
    from compresskit.runner.loading import load_shipped
    from compresskit.runner.sources import opener

    data, metric = evaluating.data, evaluating.metric
    showing.check((*models, data, reading.arch, metric, earlier.baseline))
    earlier.check()
    before = earlier.open()
    engines, options = engine_names(how.runtimes, allow_auto=not how.evaluated), reading.load_options()
    how = replace(how, runtimes=engines, loader_args=options)
    window = window_of(evaluating.window, evaluating.stride)
    check_comparison(len(models), measuring, how, evaluated=data is not None)

    def read(path: Path, runtime: str) -> Any:
        return load_shipped(path, options, several=len(models) > 1, runtime=runtime)

    def open_data(model: Any) -> Any:
        return opener(model, evaluating.normalize, measuring.sequence, paths=[data], window=window)(data)

    try:
        with progressing(showing.quiet) as progress:
            report = compare(models, read, open_data, measuring, how, command=command_line(), progress=progress)
    except Interrupted as stopped:
        showing.finish(stopped.report)
        return stopped.code
    if before is not None:
        report = check(
            report, measuring.limits, baseline=before, max_growth=earlier.max_growth,
            allow_other_machine=earlier.allow_other_machine,
        )  # fmt: skip
    return showing.finish(report)
