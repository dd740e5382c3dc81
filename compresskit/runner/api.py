"""The library's verbs that read and change models: what the command line does, as function calls.

A model is given as its path, or as what :func:`compresskit.load` read; data as a path, or as what :func:`open_data`
opened. Options are called as on the command line, with underscores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from compresskit import registry
from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.recipe import shipped
from compresskit.recipe.limits import Limits
from compresskit.recipe.outline import Outline, outline
from compresskit.recipe.plan import Recipe
from compresskit.report import Report
from compresskit.runner.arguments import AnyData, AnyModel, Reading, Samples, open_all
from compresskit.runner.cache import Cache
from compresskit.runner.exporting import export as export_model
from compresskit.runner.inspecting import inspected
from compresskit.runner.judging import Measuring
from compresskit.runner.loading import load_shipped
from compresskit.runner.pipeline import run as run_job
from compresskit.runner.pipeline import run_recipe
from compresskit.runner.prepare import with_inputs
from compresskit.runner.sources import source_for
from compresskit.runner.steps import Job
from compresskit.runner.structure import SAMPLES
from compresskit.runner.timing import SEQUENCE
from compresskit.stage import Progress, Stage, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

Steps = str | Path | Recipe | Sequence[Stage]


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


def recipes() -> list[Outline]:
    """The recipes that come with compresskit: name, description and steps of each."""
    return [outline(name) for name in shipped.names()]


def open_data(
    path: str | Path, model: AnyModel | None = None, *, normalize: str | None = None, sequence: int = SEQUENCE
) -> Source:
    """Open samples, to calibrate, train or evaluate on.

    Args:
        path: An ``.npz`` (``x`` and ``y``, or arrays named as the model's inputs); a folder of class folders; ``.txt``,
            ``.csv`` or ``.jsonl`` with the model's tokenizer; ``FILE.py:NAME``, whose code runs.
        model: What the samples are for: they are checked against its inputs, and texts are encoded by its tokenizer.
        normalize: Applied to pixels in 0…1: ``MEAN/STD`` a channel, or ``imagenet``.
        sequence: Maximum tokens of a sample.

    Returns:
        A source: ``len(source)`` samples, walked by ``source.batches(64)`` as numpy arrays.

    Raises:
        InputError: Missing, damaged, hostile, or of another shape than the model takes.
        UsageError: An unknown form, or an option that doesn't fit it.
    """
    if model is not None:
        known = model if isinstance(model, Model) else load_shipped(Path(model))
        return source_for(known, str(path), normalize, sequence)
    from compresskit.data.opening import open_source

    return open_source(str(path), normalize=normalize, sequence=sequence)


def run(
    model: AnyModel,
    steps: Steps,
    output: str | Path,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    data: AnyData = None,
    eval_data: AnyData = None,
    normalize: str | None = None,
    sequence: int | None = None,
    metric: str | None = None,
    max_drop: str | None = None,
    max_size: str | None = None,
    min_speedup: float | None = None,
    export: bool = True,
    bench: bool = True,
    device: str | None = None,
    threads: int | None = None,
    seed: int | None = None,
    cache: str | Path | None = None,
    allow_code: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Apply steps to a model, write a bundle and judge it: ``compresskit run`` and every stage command.

    Args:
        model: A path; or, for steps of :func:`method`, a model of :func:`compresskit.load`, which is changed in place
            and not to be used afterwards.
        steps: Stages of :func:`method`, in order; or a recipe: its file, the name of a built-in one, or one that
            :func:`compresskit.read_recipe` gave. What is given here wins over what the recipe says.
        output: Folder of the bundle.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code is executed.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the model's input; the first axis is the batch axis.
        data: What stages calibrate or train on.
        eval_data: Evaluation data for the verdict.
        normalize: As for :func:`open_data`, for data given as paths; so is ``sequence``.
        sequence: Maximum tokens of a sample, in data and in timing.
        metric: Name or ``FILE.py:NAME``; None chooses one by data and task.
        max_drop: Maximum loss of the metric: ``0.5pt`` or ``1%``.
        max_size: Maximum file size: ``20MB``.
        min_speedup: Minimum speed-up: 1.2 is 20 % faster.
        export: Write ONNX; nothing runs without it. A recipe always does.
        bench: Measure the speed.
        device: Device, as the runtime names it.
        threads: Threads per operator; 0 uses all cores.
        seed: Random seed.
        allow_code: Code that a recipe's file names may run; what is named here may anyhow.
        cache: Folder where a recipe's finished steps are kept, so that a later run goes on from there.
        force: Overwrite an existing output.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        The report, also in ``output/report.json``.

    Raises:
        GateError: The outputs of the ONNX export differ from the model's; nothing is written.
        UsageError: Options that don't fit, or an output that exists or is the input.
        InputError: The model or the data doesn't allow it.
        MachineError: The disk is full or read-only, memory runs out, an extra is missing.
    """
    reading = Reading(arch, arch_args, input_shape)
    limits = Limits(max_drop, max_size, min_speedup)
    if isinstance(steps, (str, Path, Recipe)):
        if not export:
            raise UsageError("a recipe's bundle has an ONNX file", "remove export=False")
        given = {
            "model": model, "arch": arch, "arch_args": arch_args, "input_shape": input_shape, "data": data,
            "eval_data": eval_data, "normalize": normalize, "sequence": sequence, "metric": metric,
            "max_drop": max_drop, "max_size": max_size, "min_speedup": min_speedup, "device": device,
            "threads": threads, "seed": seed,
        }  # fmt: skip
        recipe = _recipe(steps, {key: value for key, value in given.items() if value is not None}, allow_code)
        kept = None if cache is None else Cache(Path(cache))
        return run_recipe(recipe, output, bench=bench, cache=kept, force=force, progress=progress)
    if cache is not None:
        raise UsageError("cache is for the steps of a recipe", "give a recipe, or remove cache")
    steps, tokens = tuple(steps), sequence or SEQUENCE
    read = reading.to_change(
        model, steps, export=export, data=data is not None, limited=max_drop is not None or max_size is not None
    )
    train, evaluated = open_all(read, [data, eval_data], normalize, tokens)
    measuring = Measuring(
        evaluated, metric, limits, export=export, bench=bench, sequence=tokens, threads=threads or 0,
        device=device or "cpu", seed=seed or 0,
    )  # fmt: skip
    return run_job(read, Job.of(steps, Path(output), train, measuring, force=force, progress=progress))


def export(
    model: AnyModel,
    output: str | Path,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    data: AnyData = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Export a model to ONNX and verify it against the original: ``compresskit export``.

    Args:
        model: A path or a model whose architecture is known.
        output: The file; weights past 2 GB go to ``<output>.data``.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code is executed.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the model's input; the first axis is the batch axis.
        data: Samples for the input shape and the verification.
        seed: Seed of the inputs that verify the file.
        force: Overwrite an existing file.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        A report whose one gate is the parity; PASS, since a miss raises.

    Raises:
        GateError: The outputs of the file would differ from the model's; nothing is written.
        UsageError: The model is ONNX already, or its architecture or inputs aren't known.
        InputError: The model can't be exported.
    """
    read = Reading(arch, arch_args, input_shape).whole(model)
    source = Samples(data).of(read, SEQUENCE)
    return export_model(read, Path(output), data=source, seed=seed, force=force, progress=progress)


def inspect(
    model: AnyModel,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    spectrum: bool = False,
    sensitivity: AnyData = None,
    structure: AnyData = None,
    samples: int = SAMPLES,
    normalize: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """List the layers of a model and estimate the effect of each method: ``compresskit inspect --json``.

    Args:
        model: A path or a model; what is broken is shown, not refused.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code is executed.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the model's input; the first axis is the batch axis.
        spectrum: Add the rank of each Linear layer and convolution; needs the architecture.
        sensitivity: Data for measuring how the output changes when one layer alone is rounded to 4 bits.
        structure: Data to look at what the model does on: how linear its blocks are, which units switch.
        samples: Maximum number of samples for ``structure``.
        normalize: Applied to pixels in 0…1: ``MEAN/STD`` a channel, or ``imagenet``.
        seed: Seed of the random inputs.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        JSON: ``layers`` with name, type, shape, bytes and MACs, the totals, ``history`` and ``estimates``.

    Raises:
        CompressKitError: The model can't be read, or what is asked for needs its architecture.
    """
    read = Reading(arch, arch_args, input_shape, allow_nonfinite=True).whole(model)
    rounded, looked = open_all(read, [sensitivity, structure], normalize, SEQUENCE)
    if looked is not None:
        read = with_inputs(read, looked)
    return inspected(
        read, spectrum=spectrum, sensitivity=rounded, structure=looked, samples=samples, seed=seed, progress=progress
    )


def _recipe(steps: str | Path | Recipe, given: dict[str, Any], allow_code: bool) -> Recipe:
    """The one recipe that is meant, with what was given beside it.

    Raises:
        UsageError: It is a matrix, or something was given open that a recipe names by its path.
        RecipeError: With everything that is wrong.
    """
    from compresskit.recipe.reading import read_recipe

    for name in {"model", "data", "eval_data"} & given.keys():
        if not isinstance(given[name], (str, Path)):
            raise UsageError(f"a recipe reads its {name} by itself, to know it again", f"give the path of {name}")
        given[name] = str(given[name])
    if isinstance(steps, Recipe):
        return replace(steps, **given)
    checks = ("max_drop", "max_size", "min_speedup")
    keys = {f"checks.{key}" if key in checks else key: value for key, value in given.items()}
    overrides = {key.replace("_", "-"): list(v) if isinstance(v, tuple) else v for key, v in keys.items()}
    found = read_recipe(steps, overrides=overrides, allow_code=allow_code, complete=True)
    if len(found) > 1:
        raise UsageError(f"{steps} is a matrix of {len(found)} points", "read_recipe gives them; run each")
    return found[0]
