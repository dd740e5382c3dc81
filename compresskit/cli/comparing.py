"""What evaluate, bench and compare share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compresskit.report import Report


@dataclass(frozen=True)
class Earlier:
    """What ``--baseline`` and the options about it say."""

    path: Path | None = None
    max_growth: str | None = None
    other_machine: bool = False

    def open(self) -> Report | None:
        """The report of the earlier run, if there is one.

        Raises:
            UsageError: There is none, and an option is about it.
            InputError: It can't be read, or contradicts itself.
        """
        from compresskit.errors import UsageError
        from compresskit.runner.check import open_report

        if self.path is not None:
            return open_report(self.path)
        if self.max_growth is not None or self.other_machine:
            option = "--max-growth" if self.max_growth is not None else "--allow-other-machine"
            raise UsageError(f"{option} is about a baseline", "give --baseline REPORT")
        return None


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
            raise UsageError("--runtime auto stands alone", "leave the other --runtime away")
        return found
    for name in found:
        require(get(name))
    return found


def compare_models(
    models: Sequence[Path],
    *,
    runtimes: Sequence[str],
    judged: bool,
    json: str | None,
    html: Path | None,
    markdown: bool,
    quiet: bool,
    arch: str | None,
    arch_args: str | None,
    input_shape: str | None,
    allow_nonfinite: bool,
    device: str,
    threads: Sequence[int],
    seed: int,
    sequence: Sequence[int],
    data: str | None = None,
    normalize: str | None = None,
    metric: str | None = None,
    evaluated: bool = True,
    bench: bool = True,
    target: str | None = None,
    batch: Sequence[int] = (1,),
    rounds: int | None = None,
    processes: int | None = None,
    roofline: bool = False,
    profiled: bool = False,
    limits: tuple[str | None, str | None, float | None] = (None, None, None),
    earlier: Earlier | None = None,
) -> int:
    """Measure models as they are and show the report; returns the exit code.

    Several ``threads``, ``sequence`` or ``batch`` are a sweep: speed is measured for each combination of them.
    """
    from compresskit.bench.sweep import points
    from compresskit.cli.console import check_html, check_json, finish, progressing
    from compresskit.cli.inputs import command_line, load_options, load_shipped
    from compresskit.errors import UsageError
    from compresskit.recipe.limits import Limits
    from compresskit.runner.check import check
    from compresskit.runner.compare import Interrupted, compare
    from compresskit.runner.int8_saturation import int8_arithmetic_on
    from compresskit.runner.judging import Measuring
    from compresskit.runner.sources import opener

    earlier = earlier or Earlier()
    check_json(json, (*models, data, arch, metric, earlier.path))
    check_html(html, (*models, data, arch, metric, earlier.path))
    before = earlier.open()
    engines = engine_names(runtimes, allow_auto=not evaluated)
    if int8_arithmetic_on(target) != "native" and engines != ["onnxruntime"]:
        raise UsageError(f"--target {target} can be emulated for onnxruntime only", "leave --runtime away")
    if metric is not None and data is None:
        raise UsageError("--metric needs data", "give --data")
    options = load_options(arch, arch_args, input_shape, allow_nonfinite)
    measuring = Measuring(
        metric=metric,
        limits=Limits(*limits),
        bench=bench,
        sequence=sequence[0],
        threads=threads[0],
        device=device,
        seed=seed,
        target=target,
    )
    measuring.limits.check(evaluated=data is not None, benched=bench, data_option="--data")
    if limits[2] is not None and len(models) * len(engines) < 2 and engines != ["auto"]:
        raise UsageError("--min-speedup needs a second model to hold against the first")

    def read(path: Path, runtime: str) -> Any:
        return load_shipped(path, options, several=len(models) > 1, runtime=runtime)

    def open_data(model: Any) -> Any:
        return opener(model, normalize, sequence[0], paths=[data])(data)

    try:
        with progressing(quiet) as progress:
            report = compare(
                models,
                read,
                open_data,
                measuring,
                judged=judged or limits[2] is not None,
                runtimes=engines,
                where=points(batch, threads, sequence),
                rounds=rounds,
                processes=processes,
                roofline=roofline,
                profiled=profiled,
                evaluated=evaluated,
                loader_args=options,
                command=command_line(),
                progress=progress,
            )
    except Interrupted as stopped:
        finish(stopped.report, json=json, html=html, quiet=quiet, markdown=markdown)
        return stopped.code
    if before is not None:
        report = check(
            report, measuring.limits, baseline=before, max_growth=earlier.max_growth,
            allow_other_machine=earlier.other_machine,
        )  # fmt: skip
    return finish(report, json=json, html=html, quiet=quiet, markdown=markdown)
