"""Models held against each other as they are: evaluate, bench and compare."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.bench import target as targets
from compresskit.bench.machine import environment
from compresskit.bench.run import change
from compresskit.bench.sweep import Point
from compresskit.errors import InputError, UsageError
from compresskit.model import Model
from compresskit.report import Measurement, Report, Verdict, judge
from compresskit.runner.candidate import Candidate
from compresskit.runner.gates import gates
from compresskit.runner.int8_saturation import int8_arithmetic_on, saturation_notes
from compresskit.runner.judging import Measuring
from compresskit.runner.layers import layers_of
from compresskit.runner.measure import quality
from compresskit.runner.prepare import candidate, with_inputs
from compresskit.runner.recommend import able, everywhere, recommendation
from compresskit.runner.timing import Speed, fitting, speed
from compresskit.runtimes import runs_modules
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

_STOPPED = "interrupted: the figures are of what was measured by then"
Reader = Callable[[Path, str], Model]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while models were timed; ``report`` tells what was measured by then, ``code`` how to exit."""

    def __init__(self, report: Report, code: int) -> None:
        super().__init__()
        self.report, self.code = report, code


def compare(
    paths: Sequence[Path],
    read: Reader,
    open_data: Callable[[Model], Source | None],
    measuring: Measuring,
    *,
    judged: bool,
    runtimes: Sequence[str] = ("onnxruntime",),
    where: Sequence[Point] | None = None,
    rounds: int | None = None,
    processes: int | None = None,
    roofline: bool = False,
    profiled: bool = False,
    evaluated: bool = True,
    loader_args: dict[str, Any] | None = None,
    command: str = "",
    progress: Progress = silent,
) -> Report:
    """Measure models and compare each with the first.

    Args:
        paths: The models, the baseline first.
        read: Gives the model at a path, for a runtime.
        open_data: Gives the data that suits the first model, or None.
        measuring: Metric, limits, bench, threads, device and seed; its ``source`` isn't used.
        judged: Hold the models to the limits; without it there are no gates.
        runtimes: Each model is measured under each; ``auto`` alone is every one that is installed and opens the model.
        where: The points at which models are timed; None is one sample a call, with ``measuring``'s threads and tokens.
        rounds: See :class:`compresskit.bench.run.Plan`.
        processes: The same.
        roofline: Measure what bounds each latency.
        profiled: Time each node, by the runtime's own profiler.
        evaluated: Measure quality; needs data, or a second model.
        loader_args: Arguments of ``load``, for runtimes that read the model again.
        command: How the user asked for this.
        progress: Called now and then.

    Returns:
        A report; where nothing was judged it has no gates and its verdict is UNVERIFIED, or INCONCLUSIVE where noise
        hides which model is faster.

    Raises:
        CompressKitError: A model can't be read, exported or run.
        Interrupted: Ctrl-C or SIGTERM, when something had been timed.
    """
    where = where or [Point(1, measuring.threads, measuring.sequence)]
    automatic = list(runtimes) == ["auto"]
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        models: list[Candidate] = []
        source: Source | None = None
        history: list[dict[str, Any]] = []
        names = _names(paths)
        engines, left_out = everywhere() if automatic else (list(runtimes), [])
        int8_arithmetic = int8_arithmetic_on(measuring.target)
        for index, path in enumerate(paths):
            for runtime in engines:
                label = names[index] if len(engines) == 1 else f"{names[index]} ({runtime})"
                try:
                    model = read(path, runtime)
                    source = source if models else open_data(model)
                    model = with_inputs(model, source)
                    made = candidate(
                        model,
                        label,
                        Path(folder),
                        runtime=runtime,
                        threads=measuring.threads,
                        device=measuring.device,
                        loader_args=loader_args,
                        seed=measuring.seed,
                        progress=progress,
                    )
                except (InputError, UsageError) as error:
                    if not automatic or not runs_modules(runtime):  # torch alone needs to know how to build a module
                        raise
                    left_out.append(f"{runtime} can't run {names[index]}: {error.message}")
                    continue
                history = [asdict(applied) for applied in model.card.history]
                models.append(replace(made, int8_arithmetic=int8_arithmetic))
        if automatic:
            models, refused = able(models, batch=where[0].batch, sequence=fitting(paths, where[0].sequence)[0])
            left_out += refused
        entries = [model.entry() for model in models]
        measured = None
        if evaluated and (source is not None or len(models) > 1):
            measured = quality(models, source, measuring.metric, seed=measuring.seed, progress=progress)
        if evaluated and len(models) == 1 and (measured is None or measured.metric is None):
            raise UsageError("no metric can be computed for this model on this data", "give --metric, or other --data")
        timed = Speed()
        shorter: list[str] = []
        if measuring.bench:
            where, shorter = _fitting(paths, where)
            timed = speed(
                models,
                where,
                rounds=rounds,
                processes=processes,
                seed=measuring.seed,
                roofline=roofline,
                profiled=profiled,
                keep=True,
                progress=progress,
            )
        about_int8 = saturation_notes(models, measured, source, progress=progress) if evaluated else []
        if evaluated and measuring.target is not None and not about_int8:
            about_int8 = [f"--target {measuring.target} changes nothing: only the products of int8 files depend on it"]
        layers = [layer for model in models for layer in layers_of(model.name, model.path)] if judged else []
    figures = [*(measured.measurements if measured else []), *timed.measurements]
    evaluation = measured.evaluation() if measured else None
    broken = measured.broken if measured else {}
    found = gates(entries, evaluation, figures, measuring.limits, broken=broken) if judged else []
    report = Report(
        command=command,
        verdict=judge(found, verified=evaluation is not None) if judged else _unjudged(timed.measurements),
        models=entries,
        measurements=figures,
        layers=layers,
        latencies=timed.latencies,
        profile=timed.profile,
        evaluation=evaluation,
        gates=found,
        notes=[
            *([_STOPPED] if timed.stopped else []),
            *(recommendation(models, timed.measurements) if automatic else []),
            *left_out,
            *(measured.notes if measured else []),
            *about_int8,
            *shorter,
            *timed.notes,
            *_elsewhere(measuring.target, timed.measurements),
        ],
        environment=environment(measuring.threads, measuring.device),
        history=history,
    )
    if timed.stopped:
        raise Interrupted(report, timed.stopped)
    return report


def _fitting(paths: Sequence[Path], where: Sequence[Point]) -> tuple[list[Point], list[str]]:
    """The points, with no sample longer than the models take, and a note where that changed one."""
    notes: list[str] = []
    found = []
    for point in where:
        sequence, shorter = fitting(paths, point.sequence)
        found.append(replace(point, sequence=sequence))
        notes += shorter
    return list(dict.fromkeys(found)), list(dict.fromkeys(notes))


def _elsewhere(target: str | None, timed: list[Measurement]) -> list[str]:
    """What is to be said of speed when the quality is another CPU's."""
    there, here = targets.get(target), targets.here()
    return [f"speed is this machine's ({here.title}), not that of {there.title}"] if timed and there != here else []


def _unjudged(timed: list[Measurement]) -> Verdict:
    """Figures that are held to no limit prove nothing; noise that hides which model is faster is told all the same."""
    unclear = any(m.name == "speedup" and change(m) == "inconclusive" for m in timed)
    return Verdict.INCONCLUSIVE if unclear else Verdict.UNVERIFIED


def _names(paths: Sequence[Path]) -> list[str]:
    """A short name for each model, made unique: the file's name, with its folder, or a count."""
    names = [path.name or str(path) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} #{seen[name]}"
    return names
