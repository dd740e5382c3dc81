"""What every stage command does: read, apply, export, measure, judge, show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from compresskit.cli import options as shared
from compresskit.model import Model
from compresskit.ranks import ALONE, Ranks
from compresskit.stage import Stage, say_nothing, silent


def run_stage(
    stage: Stage,
    model: Path,
    ranks: Ranks = ALONE,
    *,
    output: shared.Output = None,
    arch: shared.Arch = None,
    arch_args: shared.ArchArgs = None,
    input_shape: shared.InputShape = None,
    batch_axis: shared.BatchAxis = None,
    key: shared.Key = None,
    allow_nonfinite: shared.AllowNonfinite = False,
    data: shared.Data = None,
    eval_data: shared.EvalData = None,
    normalize: shared.Normalize = None,
    sequence: shared.Sequence = 128,
    metric: shared.MetricName = None,
    max_drop: shared.MaxDrop = None,
    max_size: shared.MaxSize = None,
    min_speedup: shared.MinSpeedup = None,
    no_export: shared.NoExport = False,
    no_bench: shared.NoBench = False,
    to: shared.To = [],  # noqa: B006 - typer copies it
    device: shared.Device = "cpu",
    threads: shared.Threads = 0,
    seed: shared.Seed = 0,
    json: shared.Json = None,
    html: shared.Html = None,
    interactive: shared.Interactive = False,
    markdown: shared.Markdown = False,
    quiet: shared.Quiet = False,
    force: shared.Force = False,
) -> None:
    """Run one stage, in this process or with others; the keyword arguments are the options of its command."""
    from compresskit.cli.console import check_html, check_json, check_output, finish, progressing, tell
    from compresskit.cli.distributed import is_main_process
    from compresskit.cli.inputs import command_line, default_output, load_model
    from compresskit.cli.option_groups import Reading
    from compresskit.errors import UsageError
    from compresskit.recipe.head import CODE, PATH
    from compresskit.recipe.limits import Limits
    from compresskit.recipe.naming import named_by
    from compresskit.runner.cache import Cache
    from compresskit.runner.judging import Measuring
    from compresskit.runner.kept_runs import keeps, reading_key
    from compresskit.runner.loading import load_for
    from compresskit.runner.pipeline import assist, run, run_again
    from compresskit.runner.sources import opener
    from compresskit.runner.steps import Job
    from compresskit.runner.targets import beside, check_targets, export_to, open_targets

    target = output or default_output(model, stage.label)
    inputs = (model, data, eval_data, arch, metric, *named_by(stage, PATH, CODE))
    check_output(target, inputs, force=force)
    targets = open_targets(name for name in to if name != "onnx")
    places = [beside(kind, target) for kind in targets]
    for place in places:
        check_output(place, inputs, force=force)
    check_json(json, inputs, target)
    check_html(html, inputs, target, interactive=interactive)
    if metric is not None and eval_data is None:
        raise UsageError("--metric needs evaluation data", "give --eval-data")
    options = Reading(arch, arch_args, input_shape, batch_axis, key, allow_nonfinite).load_options()
    cache = Cache.default()
    # What the user's own code or options of reading make of a file is in no key.
    again = keeps(stage) and not (targets or no_export or any(options.values()) or ranks.size > 1)
    kept = reading_key(model) if again and model.is_dir() else None
    limits = Limits(max_drop, max_size, min_speedup)

    def job_of(found: Model) -> Job:
        open_ = opener(found, normalize, sequence, paths=[data, eval_data])
        measuring = Measuring(
            open_(eval_data), metric, limits, not no_export, not no_bench, sequence, threads, device, seed
        )  # fmt: skip
        return Job.of(
            [stage], target, open_(data), measuring, force=force, command=command_line(), progress=progress, tell=told,
            cache=cache, ranks=ranks, kept=kept,
        )  # fmt: skip

    told = say_nothing if quiet else tell
    with progressing(quiet or not is_main_process()) as progress:
        report = run_again(model, kept, cache, job_of) if kept else None
        if report is None:
            limited = max_drop is not None or max_size is not None
            loaded = load_for(
                model, [stage], export=not no_export, data=data is not None, limited=limited, **options
            )  # fmt: skip
            check_targets(loaded, targets, [stage])
            job = job_of(loaded)
            if not is_main_process():
                measuring = replace(job.measuring, source=None, limits=Limits(), bench=False)
                assist(loaded, replace(job, measuring=measuring, progress=silent, tell=say_nothing))
                return
            report = run(loaded, job)
            for to_, file in zip(targets, places, strict=True):
                made = export_to(load_model(target, {}), to_, file, force=force, progress=progress)
                told(f"{file}: {'; '.join(made.notes)}")
    code = finish(
        report, json=json, html=html, interactive=interactive, quiet=quiet, markdown=markdown, output=str(target)
    )
    raise typer.Exit(code)
