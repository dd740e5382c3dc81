"""Time models against each other: fresh processes, turns, and an interval for the ratio to the first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.bench import machine, stats
from compresskit.bench.pool import Worker
from compresskit.bench.stats import Change, Estimate
from compresskit.errors import CompressKitError, UsageError
from compresskit.model import InputSpec
from compresskit.report import Measurement
from compresskit.stage import Progress, silent

_WARM_TURN_S = 0.02
_STABLE = 1.05
_MIN_ROUNDS = 3


@dataclass(frozen=True)
class Spec:
    """One model under one runtime.

    Attributes:
        name: The model's name in the report.
        path: What the runtime opens.
        runtime: One of :func:`compresskit.runtimes.names`.
        threads: Threads of one operator; 0 is one for each physical core.
        device: As the runtime names it.
        inputs: What goes in; empty where the runtime reads it off the file.
        sizes: Sizes of named axes (``{"batch": 1, "sequence": 128}``); ``batch`` is added by :func:`bench`.
        loader: ``module:function`` that gives a module for a path; for torch.
        loader_args: Keyword arguments of the loader; JSON.
    """

    name: str
    path: Path
    runtime: str = "onnxruntime"
    threads: int = 0
    device: str = "cpu"
    inputs: tuple[InputSpec, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    loader: str = ""
    loader_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Timing:
    """What was measured of one model, a list item for each process.

    Attributes:
        rounds: By process and round, the latencies of one call in ns.
        load_ms: Time to open the model, by process.
        peak: Peak resident bytes, by process; empty where the system doesn't tell.
        rows: Batch size of the inputs that were in fact fed.
    """

    rounds: list[list[np.ndarray]] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    rows: int = 1

    def extend(self, further: Timing) -> None:
        """Add what later processes measured."""
        self.rounds += further.rounds
        self.load_ms += further.load_ms
        self.peak += further.peak

    def medians(self) -> list[list[float]]:
        """Median latency by process and round, ns."""
        return [[float(np.median(turn)) for turn in process] for process in self.rounds]


@dataclass(frozen=True)
class Plan:
    """How long to measure; the default takes about 7 seconds for two small models.

    Attributes:
        rounds: Turns of each model in one process.
        processes: How often everything starts afresh; fewer than two give no interval. More of these, not more
            rounds, is what sharpens a comparison.
        more: Further processes where the first leave it open which model is faster; 0 for none.
        turn_s: Least length of a turn, seconds; it holds at least one call.
        warmup_s: Longest warm-up of one process, seconds; it ends when three turns in a row agree within 5 %.
        budget_s: About how long all turns may take, seconds; slow models get fewer rounds, at least 3.
        timeout_s: Longest wait for one answer of a process, seconds.
    """

    rounds: int = 5
    processes: int = 7
    more: int = 7
    turn_s: float = 0.04
    warmup_s: float = 0.5
    budget_s: float = 60.0
    timeout_s: float = 600.0


def bench(
    specs: Sequence[Spec],
    *,
    batch: int = 1,
    rounds: int = Plan.rounds,
    processes: int = Plan.processes,
    seed: int = 0,
    plan: Plan | None = None,
    progress: Progress = silent,
) -> list[Measurement]:
    """Time models and compare each with the first.

    Args:
        specs: The models, the baseline first.
        batch: Size of the batch axis, where it may vary.
        rounds: See :class:`Plan`.
        processes: See :class:`Plan`.
        seed: Of the made-up inputs.
        plan: All of it, in place of ``rounds`` and ``processes``.
        progress: Called after each generation of processes.

    Returns:
        For each model ``latency_p50`` (with the interval over processes), ``latency_p95``, ``latency_p99``,
        ``throughput``, ``load``, ``peak_memory`` (of the whole process, interpreter and engine included) and, from the
        second on, ``speedup`` with its 95 % interval; :func:`change` says what a speed-up proves. ``n`` counts
        processes, for the two percentiles samples: single calls, or the mean of several that are under 20 µs.

    Raises:
        CompressKitError: As :func:`measure`.
    """
    plan = plan or Plan(rounds=rounds, processes=processes, more=Plan.more if processes == Plan.processes else 0)
    timings = measure(specs, plan, batch=batch, seed=seed, progress=progress)
    if plan.more and _open_questions(timings):
        again = measure(specs, replace(plan, processes=plan.more), batch=batch, seed=seed, progress=progress)
        for timing, further in zip(timings, again, strict=True):
            timing.extend(further)
    found = [m for spec, timing in zip(specs, timings, strict=True) for m in _summary(spec, timing)]
    for spec, timing in zip(specs[1:], timings[1:], strict=True):
        ratio = stats.speedup(timings[0].medians(), timing.medians())
        found.append(_measurement(spec, timing, "speedup", ratio, "×"))
    return found


def _open_questions(timings: list[Timing]) -> bool:
    """True where noise hides whether a model is faster than the first, and more processes may tell."""
    base = timings[0].medians()
    return any(stats.compare(base, timing.medians()) == "inconclusive" for timing in timings[1:])


def change(speedup: Measurement, min_effect: float = stats.MIN_EFFECT) -> Change:
    """What a ``speedup`` of :func:`bench` proves; see :func:`compresskit.bench.stats.decide`."""
    low = 0.0 if speedup.low is None else speedup.low
    high = math.inf if speedup.high is None else speedup.high
    return stats.decide(Estimate(speedup.value, low, high, speedup.n), min_effect)


def measure(
    specs: Sequence[Spec], plan: Plan, *, batch: int = 1, seed: int = 0, progress: Progress = silent
) -> list[Timing]:
    """Collect latencies: as often as the plan says, start one process a model and let them take turns.

    All models are in memory at once, each in its process; only one computes at a time. Who goes first changes from
    round to round and from generation to generation.

    Returns:
        One timing for each spec, in order.

    Raises:
        UsageError: No models, or fewer than one round or process.
        InputError: A model can't be opened or run, or crashes its engine.
        MachineError: A runtime isn't installed, memory runs out, or a process doesn't answer.
    """
    if not specs or plan.rounds < 1 or plan.processes < 1:
        raise UsageError(f"cannot time {len(specs)} models, {plan.processes} processes of {plan.rounds} rounds")
    timings = [Timing() for _ in specs]
    for generation in range(plan.processes):
        progress("bench", generation, plan.processes)
        with ExitStack() as stack:
            order = [(i + generation) % len(specs) for i in range(len(specs))]
            workers = {i: Worker(specs[i].name, specs[i].runtime, plan.timeout_s, stack) for i in order}
            for worker in workers.values():  # all have imported their engine before anything is timed
                worker.answer()
            fastest = 0.0
            for i in order:
                fastest += max(plan.turn_s, _open(specs[i], workers[i], timings[i], batch, seed))
            for i in order:
                _warm_up(workers[i], plan.warmup_s)
            fitting = int(plan.budget_s / plan.processes / fastest)
            _take_turns(workers, timings, order, min(plan.rounds, max(_MIN_ROUNDS, fitting)), plan.turn_s)
    progress("bench", plan.processes, plan.processes)
    return timings


def refusal(spec: Spec, *, batch: int = 1, seed: int = 0, timeout_s: float = Plan.timeout_s) -> str | None:
    """Why a model can't be run, found out in a process of its own; None where it can.

    Args:
        spec: The model under one runtime.
        batch: Size of the batch axis, where it may vary.
        seed: Of the made-up inputs.
        timeout_s: Longest wait for it to open and run, seconds.
    """
    with ExitStack() as stack:
        try:
            worker = Worker(spec.name, spec.runtime, timeout_s, stack)
            worker.answer()
            _open(spec, worker, Timing(), batch, seed)
        except CompressKitError as error:
            return error.message.removeprefix(f"{spec.name}: ")
    return None


def _open(spec: Spec, worker: Worker, timing: Timing, batch: int, seed: int) -> float:
    """Open a model in its worker; seconds of its fastest call."""
    answer = worker.ask(
        do="open",
        path=str(spec.path),
        runtime=spec.runtime,
        threads=spec.threads or machine.cores(),
        device=spec.device,
        inputs=[asdict(one) for one in spec.inputs],
        sizes={"batch": batch, **spec.sizes},
        seed=seed,
        loader=spec.loader,
        loader_args=spec.loader_args,
    )
    timing.load_ms.append(answer["load_ms"])
    timing.rows = answer["rows"]
    return float(answer["call_ns"]) / 1e9


def _warm_up(worker: Worker, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    last: list[float] = []
    while time.monotonic() < end:
        last = [*last[-2:], float(np.median(worker.ask(do="round", min_time_s=_WARM_TURN_S, min_calls=1)))]
        if len(last) == 3 and max(last) < _STABLE * min(last):
            return


def _take_turns(
    workers: dict[int, Worker], timings: list[Timing], order: list[int], rounds: int, turn_s: float
) -> None:
    for timing in timings:
        timing.rounds.append([])
    for number in range(rounds):
        for i in order if number % 2 == 0 else reversed(order):
            turn = workers[i].ask(do="round", min_time_s=turn_s, min_calls=1)
            timings[i].rounds[-1].append(np.asarray(turn, np.float64))
    for i, worker in workers.items():
        peak = worker.ask(do="peak")
        if peak is not None:
            timings[i].peak.append(peak)


def _summary(spec: Spec, timing: Timing) -> list[Measurement]:
    """The figures of one model by itself."""
    calls = np.concatenate([turn for process in timing.rounds for turn in process]) / 1e6
    middle = stats.estimate([float(np.median(process)) / 1e6 for process in timing.medians()])
    rate = 1e3 * timing.rows
    flipped = Estimate(rate / middle.value, rate / middle.high, rate / middle.low if middle.low else math.inf, middle.n)
    found = [_measurement(spec, timing, "latency_p50", middle, "ms")]
    for percent in (95, 99):
        value = float(np.percentile(calls, percent))
        found.append(_measurement(spec, timing, f"latency_p{percent}", Estimate(value, 0, math.inf, len(calls)), "ms"))
    found.append(_measurement(spec, timing, "throughput", flipped, "1/s"))
    found.append(_measurement(spec, timing, "load", _median(timing.load_ms), "ms"))
    if timing.peak:
        found.append(_measurement(spec, timing, "peak_memory", _median(timing.peak), "bytes"))
    return found


def _median(values: Sequence[float]) -> Estimate:
    return Estimate(float(np.median(values)), min(values), max(values), len(values))


def _measurement(spec: Spec, timing: Timing, name: str, found: Estimate, unit: str) -> Measurement:
    bounded = found.low > 0 and found.high < math.inf
    return Measurement(
        model=spec.name,
        name=name,
        value=found.value,
        unit=unit,
        n=found.n,
        low=found.low if bounded else None,
        high=found.high if bounded else None,
        runtime=spec.runtime,
        batch=timing.rows,
    )
