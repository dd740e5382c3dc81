"""Speed of models against the first of them, with all that a reader needs to trust and understand it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from compresskit.bench import machine, noise
from compresskit.bench.run import Plan, node_times
from compresskit.bench.sweep import Point, sweep
from compresskit.data.tokens import longest
from compresskit.errors import STOPS, CompressKitError, stop_code
from compresskit.report import Distribution, Measurement, NodeTime
from compresskit.runner.candidate import Candidate
from compresskit.runner.roofline import limits
from compresskit.runner.why_slower import slower
from compresskit.stage import Progress, silent

SEQUENCE = 128
"""Tokens of a sample where the sequence axis may vary and no data says how long."""


@dataclass
class Speed:
    """What was found out of some models' speed.

    Attributes:
        measurements: For the report; so are the others.
        latencies: As quantiles.
        profile: By node, where it was asked for.
        notes: What a reader must know.
        stopped: The exit code where Ctrl-C or SIGTERM stopped it, else 0; the figures are of what was whole by then.
    """

    measurements: list[Measurement] = field(default_factory=list)
    latencies: list[Distribution] = field(default_factory=list)
    profile: list[NodeTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stopped: int = 0


def fitting(sources: Iterable[Path], sequence: int) -> tuple[int, list[str]]:
    """A sample's length that all models take, and a note when it isn't the one that was asked for.

    Args:
        sources: Where the models were read from; a Hugging Face folder or its bundle says how long a sample may be.
        sequence: Tokens of a sample.
    """
    most = min(longest(source) for source in sources)
    return (sequence, []) if sequence <= most else (most, [f"timed with {most} tokens a sample, the most there may be"])


def speed(
    models: Sequence[Candidate],
    where: Sequence[Point] | None = None,
    *,
    rounds: int | None = None,
    processes: int | None = None,
    seed: int = 0,
    roofline: bool = False,
    profiled: bool = False,
    keep: bool = False,
    progress: Progress = silent,
) -> Speed:
    """Latency, throughput, load time and memory of each model, and the speed-up against the first.

    Args:
        models: The baseline first.
        where: The points of a sweep; None is one sample of 128 tokens, with the models' own threads.
        rounds: See :class:`compresskit.bench.run.Plan`; None is its default.
        processes: The same.
        seed: Of the made-up inputs.
        roofline: Measure what bounds each latency, see :func:`compresskit.runner.roofline.limits`.
        profiled: Time each node at each point, by the runtime's own profiler.
        keep: After Ctrl-C give what is known so far, see :func:`compresskit.bench.sweep.sweep`.
        progress: Called after each generation of processes.
    """
    where = where or [Point(1, models[0].threads, SEQUENCE)]
    default = Plan()
    plan = replace(default, rounds=rounds or default.rounds)
    if processes is not None:
        plan = replace(plan, processes=processes, more=0)
    specs = [model.spec({}) for model in models]
    load, before = noise.load_average(), noise.snapshot()
    timed = sweep(specs, where, plan=plan, seed=seed, keep=keep, progress=progress)
    notes = [*slower(models, timed.measurements), *noise.notes(before, noise.snapshot(), load=load)]
    found = Speed(timed.measurements, timed.latencies, notes=notes, stopped=timed.stopped)
    try:
        if roofline and not found.stopped:
            figures, about = limits(models, found.measurements, progress=progress)
            found.measurements += figures
            found.notes += about
        if profiled and not found.stopped:
            for point in where:
                nodes, about = profile(models, point, seed=seed)
                found.profile += nodes
                found.notes += [note for note in about if note not in found.notes]
    except STOPS as error:
        if not keep:
            raise
        found.stopped = stop_code(error)
    return found


def profile(models: Sequence[Candidate], point: Point, *, seed: int = 0) -> tuple[list[NodeTime], list[str]]:
    """What each node of each model takes of a call at a point, the slowest first; a note where that isn't known.

    Args:
        models: Those that were timed.
        point: Where.
        seed: Of the made-up inputs.
    """
    found: list[NodeTime] = []
    notes: list[str] = []
    threads = point.threads or machine.cores()
    for model in models:
        try:
            ran = node_times(point.of(model.spec({})), batch=point.batch, seed=seed)
        except CompressKitError as error:
            notes.append(f"no profile of {model.name}: {error.message.removeprefix(f'{model.name}: ')}")
            continue
        total = sum(ms for _, _, ms in ran.nodes) or 1.0
        found += [
            NodeTime(
                model=model.name,
                name=name,
                op=op,
                ms=ms,
                share=ms / total,
                runtime=model.runtime,
                batch=ran.rows,
                threads=threads,
                sequence=ran.tokens,
            )
            for name, op, ms in ran.nodes
        ]
    return found, notes
