"""The whole way of one model: its steps, export, measurements, verdict, and the bundle they end in.

A single command, the library's ``run`` and a recipe are taken by the same loop; a recipe's steps are kept, told of and
may be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from compresskit import registry
from compresskit.checkpoint.atomic import new_folder, refuse_within
from compresskit.checkpoint.bundle import PAGE_NAME, PROVENANCE_NAME, REPORT_NAME, read_card
from compresskit.errors import GateError, UsageError
from compresskit.model import Model, reads_and_writes
from compresskit.recipe.limits import Limits
from compresskit.recipe.plan import Recipe
from compresskit.report import Report
from compresskit.runner.cache import Cache
from compresskit.runner.cached_steps import Cached, read_model
from compresskit.runner.disk_space import check_room
from compresskit.runner.int8_saturation import int8_arithmetic_on
from compresskit.runner.judging import Measuring, RunLog, report_on
from compresskit.runner.kept_runs import KeptRun, found_again
from compresskit.runner.keys import surroundings
from compresskit.runner.measured import Measured
from compresskit.runner.preconditions import check, check_output
from compresskit.runner.prepare import with_inputs, with_usage
from compresskit.runner.provenance import provenance
from compresskit.runner.readme import write_readme
from compresskit.runner.sources import opener, parted
from compresskit.runner.stage_runner import aimed_at, form, workplace
from compresskit.runner.steps import InMemory, Job, Steps, T
from compresskit.stage import Progress, say_nothing, silent

_TWO_FILES = "no model.onnx was written: an encoder-decoder takes two files, which `to` optimum writes"


def run(model: Model, job: Job) -> Report:
    """Take steps on a model in memory and write the bundle with its report.

    The bundle appears under its final name when everything in it is whole; a bundle whose gates fail is written too,
    with the verdict FAIL in its report, but not one that fails the parity gate.

    Args:
        model: What was read; changed in place and not to be used afterwards.
        job: Of steps without limits of their own: none can be undone.

    Raises:
        GateError: The ONNX export computes something else than the model.
        UsageError: Options that don't fit, an output that exists or is the input.
        InputError: The model or the data doesn't allow it.
        MachineError: The disk is full or read-only, memory runs out.
    """
    if any(step.rollback or step.max_drop is not None for step in job.steps):
        raise TypeError("steps in memory can't be measured and undone: run them as a recipe")
    check_output(job.output, model.source, job.stages)
    if job.kept is None or job.cache is None or model.card.arch.kind != "transformers":
        return _run(lambda: (model, job), InMemory)
    kept = KeptRun(job.kept, model.card, model.notes, job.cache)
    report = _run(lambda: (model, job), kept.steps)
    kept.keep(job.output)
    return report


def run_again(path: Path, kept: str, cache: Cache, job_of: Callable[[Model], Job]) -> Report | None:
    """Judge once more what :func:`run` gave for the same job on the same model; nothing else is computed again.

    Args:
        path: A Hugging Face folder.
        kept: From :func:`compresskit.runner.kept_runs.reading_key`.
        cache: Where what it gave was kept.
        job_of: Gives the job, by what is known of the model.

    Returns:
        None where it was not run yet.

    Raises:
        UsageError: As of :func:`run`.
        MachineError: The disk is full or read-only.
    """
    found = found_again(path, kept, cache, job_of)
    if found is None:
        return None
    check_output(found.job.output, path, found.job.stages)
    return _run(lambda: (found.model, found.job), lambda *_: found.steps, ready=lambda model, job: (model, job))


def run_recipe(
    recipe: Recipe,
    output: str | Path,
    *,
    bench: bool = True,
    cache: Cache | None = None,
    force: bool = False,
    command: str = "",
    progress: Progress = silent,
    tell: Callable[[str], None] = say_nothing,
    draw: Callable[[Report], str] | None = None,
    complete: Callable[[Report, Path], Report] | None = None,
    known: Measured | None = None,
) -> Report:
    """Run the steps of a recipe, write the bundle, and judge it against the original.

    What a step gives is read back from the cache before the next one goes on from it, computed just now or found there:
    a run that was killed and started again ends in the same bytes as one that wasn't. Latency is always measured.

    Args:
        recipe: With a model.
        output: The folder to write.
        bench: Measure the speed.
        cache: Where finished steps are kept; None keeps them until the end of this run.
        force: Overwrite an existing output.
        command: How the user asked for this.
        progress: Called from time to time as ``progress(what, done, total)``.
        tell: Shows the user a line right away.
        draw: Gives the page that is put beside the report; None leaves it away.
        complete: Adds to the report, and to the folder, before the bundle is sealed.
        known: Figures of the original and the result that were measured already.

    Raises:
        GateError: A step's ONNX export computes something else, or every step was undone; nothing is written.
        UsageError: Options that don't fit, an output that exists or is an input.
        InputError: The model or the data doesn't allow it.
        MachineError: The disk is full or read-only, memory runs out.
    """
    if recipe.model is None:
        raise UsageError("the recipe names no model", "give one: compresskit run RECIPE MODEL")
    origin, output = Path(recipe.model), Path(output)
    check_output(output, origin, [step.stage for step in recipe.steps])
    if cache is not None:
        refuse_within(cache.root, output)
    check_room(recipe, output, None if cache is None else cache.root)

    def read() -> tuple[Model, Job]:
        model = read_model(recipe, origin)
        open_ = opener(model, recipe.normalize, recipe.sequence, paths=[recipe.data, recipe.eval_data])
        measuring = Measuring(
            open_(recipe.eval_data), recipe.metric, Limits(recipe.max_drop, recipe.max_size, recipe.min_speedup),
            bench=bench, sequence=recipe.sequence, threads=recipe.threads, device=recipe.device, seed=recipe.seed,
        )  # fmt: skip
        return model, Job(
            recipe.steps, output, parted(open_(recipe.data), recipe)[0], measuring, force, command, progress, tell,
            cache, recipe, draw, complete, known,
        )  # fmt: skip

    def steps(model: Model, job: Job, work: Path) -> Cached:
        return Cached(model, job, recipe, cache or Cache(work / "steps"))

    return _run(read, steps)


def _run(
    read: Callable[[], tuple[Model, Job]],
    steps_of: Callable[[Model, Job, Path], Steps[T]],
    ready: Callable[[Model, Job], tuple[Model, Job]] | None = None,
) -> Report:
    """Run a job.

    Args:
        read: Gives the model, and what is to be done with it.
        steps_of: What takes the steps, by the model with its inputs known, the job and a folder for temporary files.
        ready: Checks and completes both; None is what a model needs that no steps were taken on.
    """
    model, job = (ready or _ready)(*read())
    origin = model.source
    with new_folder(job.output, force=job.force) as folder:
        with workplace(folder) as work:
            steps = steps_of(model, job, work)
            del model  # where the steps are kept on disk, its weights needn't stay in memory
            taken = _walk(steps, job)
            report = _judge(steps, taken, job, folder)
            if job.complete is not None:
                report = job.complete(report, folder)
            (folder / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
            if job.draw is not None:
                (folder / PAGE_NAME).write_text(job.draw(report), encoding="utf-8")
        steps.finish(taken[-1] if taken else steps.first, folder)
        write_readme(report, read_card(folder, verify=False), origin, folder)
    return report


def assist(model: Model, job: Job) -> None:
    """Take part in the steps of a job as one of several processes; the first one writes and judges the result.

    Args:
        model: As for :func:`run`.
        job: Of the same steps and data as the first process's.

    Raises:
        CompressKitError: The model, the data or the machine doesn't allow it, here or in another process.
    """
    model, job = _ready(model, job)
    needed = any(stage.gives == "onnx" for stage in job.stages)
    job = replace(job, measuring=replace(job.measuring, export=job.measuring.export and needed))
    with TemporaryDirectory(prefix="compresskit-") as work:
        _walk(InMemory(model, job, Path(work)), job)


def _ready(model: Model, job: Job) -> tuple[Model, Job]:
    """Check what can be known to be wrong, and complete what is known of the model."""
    if form(model) == "weights" or reads_and_writes(model.body):
        notes = (*job.notes, _TWO_FILES) if reads_and_writes(model.body) and job.measuring.export else job.notes
        job = replace(job, measuring=replace(job.measuring, export=False), notes=notes)
    measuring = job.measuring
    check(model, job.stages, job.data, measuring)
    int8_arithmetic_on(measuring.target or aimed_at(job.stages))  # an unknown name is refused before the work
    if measuring.export:
        model = with_inputs(model, job.data if job.data is not None else measuring.source)
    return with_usage(model, measuring.source, job.data), job


def _walk(steps: Steps[T], job: Job) -> list[T]:
    """Take all steps; returns those that weren't undone.

    Raises:
        GateError: None is left.
    """
    taken: list[T] = []
    for place, step in enumerate(job.steps):
        now = taken[-1] if taken else steps.first
        at = steps.take(place, step.stage, now)
        if steps.stays(place, step, now, at):
            taken.append(at)
    if job.steps and not taken:
        names = ", ".join(entry.name for entry in steps.entries)
        raise GateError(f"every step was undone ({names}): nothing is left to write", "loosen max-drop")
    return taken


def _judge(steps: Steps[T], taken: Sequence[T], job: Job, folder: Path) -> Report:
    """Write what ships, and compare it with the original by the limits that suit the steps that were not undone."""
    after = steps.deliver(taken[-1] if taken else steps.first, folder)
    target = next((at.target for at in reversed(taken) if at.target), None)
    kinds = [registry.get(name).kind for at in taken for name in at.stages]
    log = RunLog(
        job.data, [*job.notes, *(note for at in taken for note in at.notes)], steps.entries, steps.gates, job.known
    )
    measuring = job.measuring.of(kinds, target)
    report = report_on(
        steps.baseline, after, job.output, measuring, log, command=job.command, progress=job.progress
    )  # fmt: skip
    if job.recipe is not None:
        found = provenance(job.recipe, surroundings(job.measuring.threads), steps.entries, folder)
        (folder / PROVENANCE_NAME).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return report
