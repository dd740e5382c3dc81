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
from compresskit.benchmark.stats import estimate
from compresskit.errors import UsageError
from compresskit.model import portable
from compresskit.report import Measurement, Report, Verdict
from compresskit.runner.candidate import Candidate
from compresskit.runtimes.text import kind_of
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
        threads: Of one operator; 0 is each program's choice.
        rounds: Turns of each model in a process, after one that isn't counted.
        processes: How often all starts afresh.
        command: How the user asked for this.
        progress: Called now and then.

    Returns:
        A report without gates: ``first_token`` (ms), ``prefill`` and ``decode`` (tokens/s) and ``peak_memory``, each
        with the 95 % interval over processes.

    Raises:
        UsageError: Two models of one name, or fewer than 2 new tokens.
        InputError: A program refuses a file.
        MachineError: A program isn't installed.
    """
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("two models have the same name", "give each model once")
    if new < 2:
        raise UsageError("`generate` needs 2 new tokens or more: what follows the first one is timed")
    engines = {path.name: kind_of(path) for path in paths}
    taken = {name: _Taken() for name in names}
    for turn in range(processes):
        with ExitStack() as stack:
            workers = {}
            for path in paths:
                worker = _Writing(path.name, engines[path.name], _TIMEOUT_S, stack)
                worker.answer()
                worker.ask(do="open", path=str(path), threads=threads, context=prompt + new + _AROUND)
                worker.ask(do="write", prompt=prompt, new=2)  # what is set up at the first call isn't counted
                workers[path.name] = worker
            _take_turns(workers, taken, prompt, new, rounds)
        progress("generate", turn + 1, processes)
    measurements = [m for name in names for m in _figures(name, engines[name], taken[name], threads)]
    entries = [Candidate(path.name, path, portable(path)).entry() for path in paths]
    notes = [
        f"{prompt} tokens in, {new} new, greedy; {processes} processes with {rounds} rounds each",
        *_lines(measurements),
    ]
    return Report(
        command=command, verdict=Verdict.UNVERIFIED, models=entries, measurements=measurements, notes=notes,
        environment=environment(),
    )  # fmt: skip


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


def _figures(name: str, engine: str, taken: _Taken, threads: int) -> list[Measurement]:
    found = []
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
    memory = max(taken.memory)
    return [*found, Measurement(model=name, name="peak_memory", value=memory, unit="bytes", runtime=engine)]


def _lines(measurements: Sequence[Measurement]) -> list[str]:
    """A line a model, for the notes."""
    lines = []
    for name in dict.fromkeys(m.model for m in measurements):
        of = {m.name: m for m in measurements if m.model == name}
        decode, memory = of["decode"], of["peak_memory"].value / 1e6
        spread = f" ({decode.low:.4g} to {decode.high:.4g})" if decode.low is not None else ""
        lines.append(
            f"{name} under {decode.runtime}: first token {of['first_token'].value:.3g} ms, prefill "
            f"{of['prefill'].value:.4g} tokens/s, decode {decode.value:.4g} tokens/s{spread}, memory {memory:.0f} MB"
        )
    return lines
