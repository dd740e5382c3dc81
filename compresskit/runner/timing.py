"""Speed of models against the first of them, with all that a reader needs to trust and understand it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from compresskit.benchmark import machine, noise
from compresskit.benchmark.run import Plan, node_times
from compresskit.benchmark.sweep import Point, sweep
from compresskit.data.source import Source
from compresskit.data.tokens import longest
from compresskit.errors import STOPS, CompressKitError, stop_code
from compresskit.report import Distribution, Measurement, NodeTime, TimedOn
from compresskit.runner.candidate import Candidate
from compresskit.runner.real_samples import on_samples
from compresskit.runner.roofline import limits
from compresskit.runner.why_slower import slower
from compresskit.stage import Progress, silent

SEQUENCE = 128
"""Tokens of a sample where the sequence axis may vary and no data says how long."""


@dataclass(frozen=True)
class Timing:
    """What is timed, and how thoroughly.

    Attributes:
        where: The points of a sweep, one at least.
        rounds: See :class:`compresskit.benchmark.run.Plan`; None is its default.
        processes: How often all processes are restarted; None is as often as the plan needs to tell which is faster.
        bars: Speed-ups of gates, see :class:`compresskit.benchmark.run.Plan`.
        roofline: Measure what bounds each latency, see :func:`compresskit.runner.roofline.limits`.
        profiled: Time each node at each point, by the runtime's own profiler.
        sampled: Time all models on samples; else only where one takes more or less time from sample to sample.
    """

    where: Sequence[Point]
    rounds: int | None = None
    processes: int | None = None
    bars: tuple[float, ...] = ()
    roofline: bool = False
    profiled: bool = False
    sampled: bool = False

    def fitting(self, sources: Iterable[Path]) -> tuple[Timing, list[str]]:
        """(this with no sample longer than the models take, a note where that changed a point).

        Args:
            sources: Where the models were read from; a Hugging Face folder or its bundle says how long a sample may be.
        """
        most = min(longest(source) for source in sources)
        where = dict.fromkeys(replace(point, sequence=min(point.sequence, most)) for point in self.where)
        short = any(point.sequence > most for point in self.where)
        notes = [f"timed with {most} tokens a sample, the most there may be"] if short else []
        return replace(self, where=list(where)), notes

    def plan(self) -> Plan:
        """The bench's plan."""
        plan = Plan(rounds=self.rounds or Plan.rounds, bars=self.bars)
        return plan if self.processes is None else plan.exactly(self.processes)


@dataclass
class Speed:
    """What was found out of some models' speed.

    Attributes:
        measurements: For the report; so are the others.
        latencies: As quantiles.
        profile: By node, where it was asked for.
        notes: What a reader must know.
        noise: Those of the notes that are about the machine.
        timed_on: The samples; None where inputs were made up.
        stopped: The exit code where Ctrl-C or SIGTERM stopped it, else 0; the figures are of what was whole by then.
    """

    measurements: list[Measurement] = field(default_factory=list)
    latencies: list[Distribution] = field(default_factory=list)
    profile: list[NodeTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    timed_on: TimedOn | None = None
    stopped: int = 0


def speed(
    models: Sequence[Candidate],
    timing: Timing,
    *,
    seed: int = 0,
    keep: bool = False,
    source: Source | None = None,
    progress: Progress = silent,
) -> Speed:
    """Latency, throughput, load time and memory of each model, and the speed-up against the first.

    Args:
        models: The baseline first.
        timing: What is timed.
        seed: Seed of the random inputs.
        keep: After Ctrl-C give what is known so far, see :func:`compresskit.benchmark.sweep.sweep`.
        source: Samples that the models are timed on where that was asked for, or one of them takes more or less time
            from input to input; without it inputs are made up.
        progress: Called after each generation of processes.
    """
    batches = {point.batch for point in timing.where}
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        real = on_samples(models, source, batches, Path(folder), asked=timing.sampled)
        specs = [model.spec({}, real.files) for model in models]
        load, before = noise.load_average(), noise.snapshot()
        timed = sweep(specs, timing.where, plan=timing.plan(), seed=seed, keep=keep, progress=progress)
    about = noise.notes(before, noise.snapshot(), load=load)
    timed.measurements += real.measurements
    notes = [*real.notes, *slower(models, timed.measurements), *about]
    found = Speed(
        timed.measurements, timed.latencies, notes=notes, noise=about, timed_on=real.timed_on, stopped=timed.stopped
    )  # fmt: skip
    try:
        if timing.roofline and not found.stopped:
            figures, about = limits(models, found.measurements, progress=progress)
            found.measurements += figures
            found.notes += about
        if timing.profiled and not found.stopped:
            for point in timing.where:
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
        seed: Seed of the random inputs.
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
