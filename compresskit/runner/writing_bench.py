"""How fast language models write: each in a process of its own, in turns, all started afresh several times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from compresskit.benchmark.machine import environment
from compresskit.benchmark.pool import Worker
from compresskit.benchmark.stats import estimate, speedup
from compresskit.errors import UsageError
from compresskit.model import portable
from compresskit.report import Measurement, Report, Verdict
from compresskit.runner.candidate import Candidate
from compresskit.runtimes.text import find
from compresskit.stage import Progress, silent

_TIMEOUT_S = 1800.0
_AROUND = 64
"""Tokens of the context beyond prompt and answer."""


class _Writing(Worker):
    boot: ClassVar[str] = """import sys; sys.path[:] = sys.argv[2:]
import signal
for stop in (signal.SIGINT, signal.SIGTERM): signal.signal(stop, signal.SIG_IGN)
from compresskit.runner.writing_worker import main
main(sys.argv[1])"""


@dataclass(frozen=True)
class _Run:
    """A model under a program: its name in the report, and what the program opens."""

    name: str
    engine: str
    path: Path


@dataclass
class _Taken:
    """Of one model: a list a process, with a value a round."""

    first_ms: list[list[float]] = field(default_factory=list)
    prefill: list[list[float]] = field(default_factory=list)
    decode: list[list[float]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def bench_writing(
    paths: Sequence[Path],
    prompt: int,
    new: int,
    *,
    engines: Sequence[str] = (),
    threads: int = 0,
    rounds: int = 3,
    processes: int = 3,
    command: str = "",
    progress: Progress = silent,
) -> Report:
    """Time models that write.

    Args:
        paths: .gguf files, folders for onnxruntime-genai, bundles or Hugging Face folders; each has its program.
        prompt: Tokens of the prompt.
        new: Tokens that are written, from 2.
        engines: Programs, each of which runs all models: of a bundle ``out`` they take ``out.gguf`` or ``out-genai``
            from beside it. None is the program of each model's form.
        threads: Of one operator; 0 is each program's choice.
        rounds: Turns of each model in a process, after one that isn't counted.
        processes: How often all starts afresh.
        command: How the user asked for this.
        progress: Called now and then.

    Returns:
        A report without gates: ``first_token`` (ms), ``prefill`` and ``decode`` (tokens/s) and ``peak_memory``, each
        with the 95 % interval over processes; and ``decode_speedup`` over the first model, taken turn by turn.

    Raises:
        UsageError: Two models of one name, fewer than 2 new tokens, or a program that opens none of a model's forms.
        InputError: A program refuses a file.
        MachineError: A program isn't installed.
    """
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("two models have the same name", "give each model once")
    if new < 2:
        raise UsageError("`generate` needs 2 new tokens or more: what follows the first one is timed")
    runs = _runs(paths, engines)
    taken = {run.name: _Taken() for run in runs}
    for turn in range(processes):
        with ExitStack() as stack:
            workers = {}
            for run in runs:
                worker = _Writing(run.name, run.engine, _TIMEOUT_S, stack)
                worker.answer()
                worker.ask(do="open", path=str(run.path), threads=threads, context=prompt + new + _AROUND)
                worker.ask(do="write", prompt=prompt, new=2)  # what is set up at the first call isn't counted
                workers[run.name] = worker
            _take_turns(workers, taken, prompt, new, rounds)
        progress("generate", turn + 1, processes)
    base = taken[runs[0].name]
    measurements = [
        m for run in runs for m in _figures(run, taken[run.name], None if run is runs[0] else base, threads)
    ]
    entries = [Candidate(run.name, run.path, portable(run.path)).entry() for run in runs]
    notes = [f"{prompt} tokens in, {new} new, greedy; {processes} processes with {rounds} rounds each"]
    return Report(
        command=command, verdict=Verdict.UNVERIFIED, models=entries, measurements=measurements, notes=notes,
        environment=environment(),
    )  # fmt: skip


def _runs(paths: Sequence[Path], engines: Sequence[str]) -> list[_Run]:
    """Each model under each program."""
    found = []
    for path in paths:
        for asked in dict.fromkeys(engines) or (None,):
            engine, place = find(path, asked)
            found.append(_Run(path.name if len(set(engines)) < 2 else f"{path.name} ({engine})", engine, place))
    return found


def _take_turns(workers: dict[str, _Writing], taken: dict[str, _Taken], prompt: int, new: int, rounds: int) -> None:
    for name in workers:
        for values in (taken[name].first_ms, taken[name].prefill, taken[name].decode):
            values.append([])
    for _ in range(rounds):
        for name, worker in workers.items():
            asked, made, first_s, rest_s = worker.ask(do="write", prompt=prompt, new=new)
            taken[name].first_ms[-1].append(1e3 * first_s)
            taken[name].prefill[-1].append(asked / first_s)
            taken[name].decode[-1].append(max(made - 1, 1) / rest_s)
    for name, worker in workers.items():
        taken[name].memory.append(float(worker.ask(do="peak") or 0))


def _figures(run: _Run, taken: _Taken, base: _Taken | None, threads: int) -> list[Measurement]:
    name, engine, found = run.name, run.engine, []
    for what, values, unit in (
        ("first_token", taken.first_ms, "ms"), ("prefill", taken.prefill, "tokens/s"),
        ("decode", taken.decode, "tokens/s"),
    ):  # fmt: skip
        each = estimate([statistics.median(rounds) for rounds in values])
        several = each.n > 1
        found.append(
            Measurement(
                model=name, name=what, value=each.value, unit=unit, n=each.n, runtime=engine, threads=threads,
                low=each.low if several else None, high=each.high if several else None,
            )
        )  # fmt: skip
    if base is not None:
        ratio = speedup(taken.decode, base.decode)  # rates, not times
        several = ratio.n > 1
        found.append(
            Measurement(
                model=name, name="decode_speedup", value=ratio.value, unit="×", n=ratio.n, runtime=engine,
                threads=threads, low=ratio.low if several else None, high=ratio.high if several else None,
            )
        )  # fmt: skip
    memory = max(taken.memory)
    return [*found, Measurement(model=name, name="peak_memory", value=memory, unit="bytes", runtime=engine)]
