"""Time models against each other: fresh processes, turns, and an interval for the ratio to the first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from compresskit.benchmark import machine, stats
from compresskit.benchmark.forks import warm_parents
from compresskit.benchmark.plan import Plan, Spec, Timing
from compresskit.benchmark.pool import Worker
from compresskit.benchmark.stats import Change, Estimate
from compresskit.benchmark.summary import distribution, measurement, summary
from compresskit.errors import STOPS, CompressKitError, InputError, UsageError, stop_code
from compresskit.report import Distribution, Measurement
from compresskit.stage import Progress, silent

__all__ = [
    "Plan",
    "Spec",
    "Timed",
    "Timing",
    "bench",
    "change",
    "measure",
    "node_times",
    "open_spec",
    "refusal",
    "time_models",
]

_WARM_TURN_S = 0.02
_STABLE = 1.05
_MIN_ROUNDS = 3


@dataclass
class Timed:
    """What a bench found out.

    Attributes:
        measurements: As :func:`bench` gives them.
        latencies: All latencies of each model, as quantiles.
        stopped: The exit code where it was stopped by Ctrl-C or SIGTERM, else 0; the rest is of the generations that
            were whole by then.
    """

    measurements: list[Measurement] = field(default_factory=list)
    latencies: list[Distribution] = field(default_factory=list)
    stopped: int = 0

    def extend(self, further: Timed) -> None:
        """Add what was found at another point."""
        self.measurements += further.measurements
        self.latencies += further.latencies
        self.stopped = self.stopped or further.stopped


def bench(
    specs: Sequence[Spec],
    *,
    batch: int = 1,
    rounds: int = Plan.rounds,
    processes: int | None = None,
    seed: int = 0,
    plan: Plan | None = None,
    progress: Progress = silent,
) -> list[Measurement]:
    """Time models and compare each with the first.

    Args:
        specs: The models, the baseline first.
        batch: Size of the batch axis, where it may vary.
        rounds: See :class:`Plan`.
        processes: How often all processes are restarted; None is 3 to 14 times, until it is known which model is
            faster.
        seed: Seed of the random inputs.
        plan: All of it, in place of ``rounds`` and ``processes``.
        progress: Called after each generation of processes.

    Returns:
        For each model ``latency_p50`` (with the interval over processes), ``latency_p95``, ``latency_p99``, where each
        call has other samples ``latency_mean``, of which speed-up and throughput are then,
        ``throughput``, ``load``, ``first_call`` (opening and the first call), ``peak_memory`` (of the whole process,
        interpreter and engine included), ``energy`` (J a call, of all that runs on the processor and the GPU; where
        the machine tells), of a GPU ``device_time`` (ms of a call by its events) and ``device_memory`` (bytes that the
        process holds there) and, from the second on, ``speedup`` with its 95 % interval; :func:`change` says what a
        speed-up proves. ``n`` counts processes, for the two percentiles samples: single calls, or the mean of several
        that are under 20 µs.

    Raises:
        CompressKitError: As :func:`measure`.
    """
    if plan is None:
        plan = Plan(rounds=rounds) if processes is None else Plan(rounds=rounds).exactly(processes)
    return time_models(specs, batch=batch, seed=seed, plan=plan, progress=progress).measurements


@warm_parents()
def time_models(
    specs: Sequence[Spec],
    *,
    batch: int = 1,
    seed: int = 0,
    plan: Plan | None = None,
    varied: frozenset[str] = frozenset(),
    keep: bool = False,
    progress: Progress = silent,
) -> Timed:
    """As :func:`bench`, with the latencies behind the figures.

    Args:
        specs: The models, the baseline first.
        batch: Size of the batch axis, where it may vary.
        seed: Seed of the random inputs.
        plan: How long to measure.
        varied: Axes (``batch``, ``sequence``) of which other sizes will be timed: each model must leave them free.
        keep: After Ctrl-C or SIGTERM give what the whole generations so far say; without it, or with none, it goes on.
        progress: Called after each generation of processes.

    Raises:
        CompressKitError: As :func:`measure`.
        KeyboardInterrupt, SystemExit: See ``keep``.
    """
    plan = plan or Plan()
    timings = [Timing() for _ in specs]
    stopped = 0
    try:
        settled = partial(_settled, timings, plan)
        measure(specs, plan, batch=batch, seed=seed, varied=varied, into=timings, settled=settled, progress=progress)
    except STOPS as error:
        if not (keep and timings and timings[0].rounds):
            raise
        stopped = stop_code(error)
    pairs = list(zip(specs, timings, strict=True))
    found = Timed([m for pair in pairs for m in summary(*pair)], [distribution(*pair) for pair in pairs], stopped)
    for spec, timing in pairs[1:]:
        ratio = stats.speedup(timings[0].typical(), timing.typical())
        found.measurements.append(measurement(spec, timing, "speedup", ratio, "×"))
    return found


def _settled(timings: list[Timing], plan: Plan) -> bool:
    """True where all is known that more processes could tell."""
    base, others = timings[0].typical(), timings[1:]
    look = plan.look(len(base))
    if look is None or (not others and len(base) < plan.processes):
        return False
    return all(stats.settled(base, timing.typical(), look, plan.bars) for timing in others)


def change(speedup: Measurement, min_effect: float = stats.MIN_EFFECT) -> Change:
    """What a ``speedup`` of :func:`bench` proves; see :func:`compresskit.benchmark.stats.decide`."""
    low = 0.0 if speedup.low is None else speedup.low
    high = math.inf if speedup.high is None else speedup.high
    return stats.decide(Estimate(speedup.value, low, high, speedup.n), min_effect)


def unclear(speedup: Measurement) -> bool:
    """Whether noise hides which model is faster: the 95 % interval holds 1, and more than the same speed."""
    low, high = speedup.low or 0.0, math.inf if speedup.high is None else speedup.high
    return change(speedup) == "inconclusive" and low <= 1 <= high


@warm_parents()
def measure(
    specs: Sequence[Spec],
    plan: Plan,
    *,
    batch: int = 1,
    seed: int = 0,
    varied: frozenset[str] = frozenset(),
    into: list[Timing] | None = None,
    settled: Callable[[], bool] | None = None,
    progress: Progress = silent,
) -> list[Timing]:
    """Collect latencies: as often as the plan says, start one process a model and let them take turns.

    All models are in memory at once, each in its process; only one computes at a time. Who goes first changes from
    round to round and from generation to generation.

    Args:
        specs: The models.
        plan: How long to measure.
        batch: Size of the batch axis, where it may vary.
        seed: Seed of the random inputs.
        varied: As in :func:`time_models`.
        into: Timings to add to, a generation at a time, once it is whole; new ones by default.
        settled: Asked after each generation whether to end; with it, the plan's ``more`` follow its ``processes``.
        progress: Called after each generation.

    Returns:
        One timing for each spec, in order.

    Raises:
        UsageError: No models, or fewer than one round or process.
        InputError: A model can't be opened or run, crashes its engine, or has an axis of fixed size that is to vary.
        MachineError: A runtime isn't installed, memory runs out, or a process doesn't answer.
    """
    if not specs or plan.rounds < 1 or plan.processes < 1:
        raise UsageError(f"cannot time {len(specs)} models, {plan.processes} processes of {plan.rounds} rounds")
    found = [Timing() for _ in specs] if into is None else into
    total, most = plan.processes, plan.processes + (plan.more if settled else 0)
    for generation in range(most):
        if generation and settled and settled():
            break
        total = total if generation < total else most
        progress("bench", generation, total)
        timings = [Timing() for _ in specs]
        with ExitStack() as stack:
            order = [(i + generation) % len(specs) for i in range(len(specs))]
            workers = {
                i: Worker(specs[i].name, specs[i].runtime, plan.timeout_s, stack, fresh=plan.fresh) for i in order
            }
            for worker in workers.values():  # all have imported their engine before anything is timed
                worker.answer()
            fastest = 0.0
            for i in order:
                fastest += max(plan.turn_s, open_spec(specs[i], workers[i], timings[i], batch, seed, varied))
            for i in order:
                _warm_up(workers[i], plan.warmup_s)
            fitting = int(plan.budget_s / plan.processes / fastest)
            _take_turns(workers, timings, order, min(plan.rounds, max(_MIN_ROUNDS, fitting)), plan.turn_s)
        for timing, further in zip(found, timings, strict=True):
            timing.extend(further)
    progress("bench", total, total)
    return found


def refusal(spec: Spec, *, batch: int = 1, seed: int = 0, timeout_s: float = Plan.timeout_s) -> str | None:
    """Why a model can't be run, found out in a process of its own; None where it can.

    Args:
        spec: The model under one runtime.
        batch: Size of the batch axis, where it may vary.
        seed: Seed of the random inputs.
        timeout_s: Longest wait for it to open and run, seconds.
    """
    with ExitStack() as stack:
        try:
            worker = Worker(spec.name, spec.runtime, timeout_s, stack)
            worker.answer()
            open_spec(spec, worker, Timing(), batch, seed)
        except CompressKitError as error:
            return error.message.removeprefix(f"{spec.name}: ")
    return None


def open_spec(
    spec: Spec, worker: Worker, timing: Timing, batch: int, seed: int, varied: frozenset[str] = frozenset()
) -> float:
    """Open a model in its worker; seconds of its fastest call.

    Raises:
        CompressKitError: It can't be opened or run, or an axis that is to be ``varied`` has a fixed size.
    """
    answer = worker.ask(do="open", loader=spec.loader, loader_args=spec.loader_args, **_told(spec, batch, seed))
    timing.load_ms.append(answer["load_ms"])
    timing.first_ms.append(answer["first_ms"])
    timing.rows, timing.tokens, timing.varied = answer["rows"], answer["tokens"], answer["varied"]
    for axis in sorted(varied - set(answer["free"])):
        raise InputError(
            f"{spec.name} can't be timed with several sizes of its {axis} axis: no input has one of free size",
            f"give one --{axis}, or export the model with a free {axis} axis",
        )
    return float(answer["call_ns"]) / 1e9


@dataclass(frozen=True)
class Profiled:
    """Name, operator and median ms of each node of a model, the slowest first; rows and tokens of one call."""

    nodes: list[tuple[str, str, float]]
    rows: int
    tokens: int | None


def node_times(spec: Spec, *, batch: int = 1, seed: int = 0, calls: int = 20) -> Profiled:
    """What each node of a model takes of a call, measured in a process of its own.

    Args:
        spec: The model under one runtime.
        batch: Size of the batch axis, where it may vary.
        seed: Seed of the random inputs.
        calls: That count.

    Raises:
        CompressKitError: As :func:`compresskit.benchmark.profile.profile`.
    """
    with ExitStack() as stack:
        worker = Worker(spec.name, spec.runtime, Plan.timeout_s, stack)
        worker.answer()
        found = worker.ask(do="profile", calls=calls, **_told(spec, batch, seed))
    nodes = [(str(name), str(op), float(ms)) for name, op, ms in found["nodes"]]
    return Profiled(nodes, found["rows"], found["tokens"])


def _told(spec: Spec, batch: int, seed: int) -> dict[str, Any]:
    """What a worker must know to open a model."""
    return {
        "path": str(spec.path),
        "runtime": spec.runtime,
        "threads": spec.threads or machine.cores(),
        "device": spec.device,
        "inputs": [asdict(one) for one in spec.inputs],
        "sizes": {"batch": batch, **spec.sizes},
        "seed": seed,
        "samples": str(spec.samples[batch]) if batch in spec.samples else "",
    }


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
            turn = workers[i].ask(do="round", min_time_s=turn_s, min_calls=1, number=number)
            timings[i].rounds[-1].append(np.asarray(turn, np.float64))
    for i, worker in workers.items():
        peak = worker.ask(do="peak")
        if peak is not None:
            timings[i].peak.append(peak)
        joules = worker.ask(do="energy")
        if joules is not None:
            timings[i].joules.append(joules)
        device = worker.ask(do="device")
        if device["ms"] is not None:
            timings[i].device_ms.append(device["ms"])
        if device["bytes"] is not None:
            timings[i].device_bytes.append(device["bytes"])
