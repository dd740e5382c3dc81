"""What evaluate, bench and compare share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def hold_models(
    models: Sequence[Path],
    *,
    runtimes: Sequence[str],
    judged: bool,
    json: str | None,
    markdown: bool,
    quiet: bool,
    arch: str | None,
    arch_args: str | None,
    input_shape: str | None,
    allow_nonfinite: bool,
    device: str,
    threads: int,
    seed: int,
    sequence: int,
    data: str | None = None,
    normalize: str | None = None,
    metric: str | None = None,
    evaluated: bool = True,
    bench: bool = True,
    batch: int = 1,
    rounds: int | None = None,
    processes: int | None = None,
    limits: tuple[str | None, str | None, float | None] = (None, None, None),
) -> int:
    """Measure models as they are and show the report; returns the exit code."""
    from compresskit.cli.console import check_json, finish, progressing
    from compresskit.cli.inputs import command_line, load_options, load_shipped, opener
    from compresskit.errors import UsageError
    from compresskit.runner.gates import Limits
    from compresskit.runner.held import hold
    from compresskit.runner.journey import Measuring
    from compresskit.runtimes import get

    check_json(json, (*models, data, arch, metric))
    for runtime in runtimes:
        get(runtime)
    if metric is not None and data is None:
        raise UsageError("--metric needs data", "give --data")
    options = load_options(arch, arch_args, input_shape, allow_nonfinite)
    measuring = Measuring(
        metric=metric,
        limits=Limits(*limits),
        bench=bench,
        sequence=sequence,
        threads=threads,
        device=device,
        seed=seed,
    )
    measuring.limits.check(evaluated=data is not None, benched=bench, data_option="--data")
    if limits[2] is not None and len(models) * len(runtimes) < 2:
        raise UsageError("--min-speedup needs a second model to hold against the first")

    def read(path: Path, runtime: str) -> Any:
        return load_shipped(path, options, several=len(models) > 1, runtime=runtime)

    def open_data(model: Any) -> Any:
        return opener(model, normalize, sequence, paths=[data])(data)

    with progressing(quiet) as progress:
        report = hold(
            models,
            read,
            open_data,
            measuring,
            judged=judged or limits[2] is not None,
            runtimes=runtimes,
            batch=batch,
            rounds=rounds,
            processes=processes,
            evaluated=evaluated,
            loader_args=options,
            command=command_line(),
            progress=progress,
        )
    return finish(report, json=json, quiet=quiet, markdown=markdown)
