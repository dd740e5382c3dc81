"""The library's verbs that measure models as they are: what the commands of these names do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from compresskit.benchmark.sweep import Point
from compresskit.data.windows import window_of
from compresskit.model import Model
from compresskit.recipe.limits import Limits
from compresskit.report import Report
from compresskit.runner.arguments import AnyData, AnyModel, Reading, Samples, compared
from compresskit.runner.compare import Comparison
from compresskit.runner.judging import Measuring
from compresskit.runner.timing import SEQUENCE, Timing
from compresskit.stage import Progress, silent


def evaluate(
    model: AnyModel,
    data: AnyData,
    *,
    metric: str | None = None,
    runtime: str = "onnxruntime",
    target: str | None = None,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    normalize: str | None = None,
    sequence: int = SEQUENCE,
    window: int | None = None,
    stride: int | None = None,
    device: str = "cpu",
    threads: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Measure the quality of a model on data: ``compresskit evaluate``.

    Args:
        model: A path or a model; of a bundle the ONNX file is measured.
        data: Samples with labels, scores, or the texts of a language model.
        metric: Name or ``FILE.py:NAME``; None chooses one by data and task.
        runtime: Engine: ``onnxruntime``, ``openvino`` or ``torch``.
        target: CPU whose 8-bit products the quality is measured with, as ``x86-avx2``; None is this one.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code is executed.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the model's input; the first axis is the batch axis.
        normalize: Applied to pixels in 0…1: ``MEAN/STD`` a channel, or ``imagenet``.
        sequence: Maximum tokens of a sample.
        window: Tokens of a window of running text, in which each token is predicted once; None is pieces of
            ``sequence``.
        stride: Tokens from one window to the next; None is half a window.
        device: Device, as the runtime names it.
        threads: Threads per operator; 0 uses all cores.
        seed: Seed of the random inputs.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        A report: ``report.evaluation`` and ``report.measurements``; nothing is judged.

    Raises:
        CompressKitError: The model can't be read or run, or no metric suits the data.
    """
    measuring = Measuring(
        metric=metric, bench=False, sequence=sequence, threads=threads, device=device, seed=seed, target=target
    )
    how = Comparison(judged=False, runtimes=[runtime])
    reading = Reading(arch, arch_args, input_shape)
    return compared([model], Samples(data, normalize, window_of(window, stride)), reading, measuring, how, progress)


def compare(
    models: Sequence[AnyModel],
    data: AnyData = None,
    *,
    metric: str | None = None,
    max_drop: str | None = None,
    max_size: str | None = None,
    min_speedup: float | None = None,
    bench: bool = True,
    runtime: str = "onnxruntime",
    target: str | None = None,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    normalize: str | None = None,
    sequence: int = SEQUENCE,
    window: int | None = None,
    stride: int | None = None,
    device: str = "cpu",
    threads: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Compare models with the first one: quality, size and speed, as a verdict: ``compresskit compare``.

    Args:
        models: The baseline first.
        data: Evaluation data; None measures the similarity to the baseline.
        metric: Name or ``FILE.py:NAME``; None chooses one by data and task.
        max_drop: Maximum loss of the metric: ``0.5pt`` or ``1%``.
        max_size: Maximum file size: ``20MB``.
        min_speedup: Minimum speed-up: 1.2 is 20 % faster.
        bench: Measure the speed.
        runtime: Engine: ``onnxruntime``, ``openvino`` or ``torch``.
        target: CPU whose 8-bit products the quality is measured with, as ``x86-avx2``; None is this one.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code is executed.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the model's input; the first axis is the batch axis.
        normalize: Applied to pixels in 0…1: ``MEAN/STD`` a channel, or ``imagenet``.
        sequence: Maximum tokens of a sample.
        window: Tokens of a window of running text, in which each token is predicted once; None is pieces of
            ``sequence``.
        stride: Tokens from one window to the next; None is half a window.
        device: Device, as the runtime names it.
        threads: Threads per operator; 0 uses all cores.
        seed: Seed of the random inputs.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        A report with gates and a verdict.

    Raises:
        CompressKitError: A model can't be read, exported or run.
    """
    measuring = Measuring(
        metric=metric, limits=Limits(max_drop, max_size, min_speedup), bench=bench, sequence=sequence,
        threads=threads, device=device, seed=seed, target=target,
    )  # fmt: skip
    how = Comparison(judged=True, runtimes=[runtime])
    reading = Reading(arch, arch_args, input_shape)
    return compared(models, Samples(data, normalize, window_of(window, stride)), reading, measuring, how, progress)


def bench(
    models: AnyModel | Sequence[AnyModel],
    *,
    runtimes: Sequence[str] = ("onnxruntime",),
    batch: Sequence[int] = (1,),
    threads: Sequence[int] = (0,),
    sequence: Sequence[int] = (SEQUENCE,),
    rounds: int | None = None,
    processes: int | None = None,
    limits: bool = False,
    profile: bool = False,
    data: AnyData = None,
    normalize: str | None = None,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """Measure latency, throughput and memory of models, each engine in a process of its own: ``compresskit bench``.

    Args:
        models: One, or several to be compared with the first.
        runtimes: Engines; ``["auto"]`` is every one that is installed and opens the model.
        batch: Samples per timed call; several values are a sweep. The same holds for ``threads`` and ``sequence``.
        threads: Threads per operator; 0 uses all cores.
        sequence: Tokens per timed sample.
        rounds: Timing rounds per model and process.
        processes: Number of times that all models are restarted and timed; more give a narrower interval.
        limits: Measure the machine's memory and arithmetic limits.
        profile: Also time each graph node with the engine's profiler.
        data: Samples that the models are timed on, one call after the other, in the place of random inputs.
        normalize: Of images, see :func:`compresskit.open_data`.
        arch: ``FILE.py:NAME`` or ``package.module:NAME`` of what builds the module. Its code is executed.
        arch_args: Keyword arguments of ``arch``.
        input_shape: Shape of the model's input; the first axis is the batch axis.
        device: Device, as the runtime names it.
        seed: Seed of the random inputs.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        A report: ``report.values("latency_p50")`` in milliseconds, ``report.values("speedup")``.

    Raises:
        CompressKitError: A model can't be read, exported or run.
    """
    several = [models] if isinstance(models, (str, Path, Model)) else list(models)
    measuring = Measuring(sequence=sequence[0], threads=threads[0], device=device, seed=seed)
    where = [Point(*point) for point in product(batch, threads, sequence)]
    timing = Timing(where, rounds, processes, roofline=limits, profiled=profile, sampled=data is not None)
    how = Comparison(judged=False, evaluated=False, runtimes=list(runtimes), timing=timing)
    reading = Reading(arch, arch_args, input_shape)
    return compared(several, Samples(data, normalize), reading, measuring, how, progress)
