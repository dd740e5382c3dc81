"""One engine in a process of its own: reads commands on stdin, answers on stdout, one JSON document a line.

Commands: ``{"do": "open", …}`` (see :func:`_open`), ``{"do": "round", "min_time_s": s, "min_calls": n}``,
``{"do": "peak"}``, ``{"do": "energy"}``, ``{"do": "device"}``, ``{"do": "profile", …}`` (see :func:`_profile`),
``{"do": "bandwidth", "size": bytes, "threads": n}`` and ``{"do": "close"}``. Answers: ``{"ok": …}`` or
``{"error": kind, "message": …, "hint": …}``; the first one, unasked, is ``ready`` once the engine is imported.
The process ends when stdin does, in the middle of a run if need be, so that no worker outlives its parent.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from compresskit.benchmark import energy, memory, memory_rate
from compresskit.benchmark.feeds import SEQUENCE, axis_sizes, make_feeds, read_feeds
from compresskit.benchmark.gpu import Gpu
from compresskit.errors import CompressKitError, InputError, MachineError, UsageError
from compresskit.model import InputSpec
from compresskit.runtimes import get

if TYPE_CHECKING:
    import numpy as np

    from compresskit.runtimes import Session

_SAMPLE_NS = 20_000  # faster calls are timed several at once: the clock steps and costs up to 100 ns
_MAX_SAMPLES = 20_000  # a round's answer stays small
_WALKED = 64  # calls of a turn where each has samples of its own
_ON_CUDA = ("onnxruntime-cuda", "onnxruntime-tensorrt")  # whatever --device says
_EVENTS, _EVENTS_S = 20, 1.0  # calls that are timed by a GPU's events, and the seconds after which no more are


def main(runtime: str) -> None:
    """Import the engine of ``runtime``, then serve until told to close or until stdin ends."""
    answers = _take_stdout()
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    prepare(runtime)
    _say(answers, {"ok": "ready"})
    engine: Engine | None = None
    answer: Any
    while True:
        command = json.loads(commands.get())
        try:
            if command["do"] == "close":
                os._exit(0)  # a regular exit would wait for the thread that reads stdin
            if command["do"] == "open":
                engine, answer = _open(command)
            elif command["do"] == "profile":
                answer = _profile(command)
            elif command["do"] == "bandwidth":
                answer = memory_rate.moved(command["size"], command["threads"])
            elif engine is None:
                raise UsageError("the worker has no model open")
            else:
                answer = _ASKED[command["do"]](engine, command)
            _say(answers, {"ok": answer})
        except CompressKitError as error:
            _say(answers, {"error": type(error).__name__, "message": error.message, "hint": error.hint})
        except MemoryError:
            _say(answers, {"error": "MachineError", "message": "out of memory", "hint": "close other programs"})


def prepare(runtime: str) -> None:
    """Import the engine of ``runtime``, which is not part of a model's load time."""
    with suppress(ImportError, CompressKitError):  # a missing engine is reported when a model is opened
        get(runtime).prepare()


class Engine:
    """An opened model with its inputs, and how many calls make a sample."""

    def __init__(self, session: Session, feeds: list[dict[str, np.ndarray]], device: str = "cpu") -> None:
        self._runs: list[Callable[[], Any]] = [partial(session.run, one) for one in feeds]
        self._next = 0
        events = getattr(session, "device_ms", None)
        self._events: Callable[[], float | None] | None = None if events is None else partial(events, feeds[0])
        self._gpu = Gpu(device)
        self._calls = 1
        self._joules, self._counted = 0.0, 0
        gc.freeze()  # what is loaded by now stays: later collections needn't walk it

    def once(self) -> int:
        """The first call of all, ns: caches are cold, and an engine may still be tuning itself."""
        return self._sample()

    def first(self) -> int:
        """Run three times; the fastest sets how many calls make a sample. Nanoseconds of the fastest."""
        fastest = min(self._sample() for _ in range(3))
        if len(self._runs) == 1:
            self._calls = max(1, -(-_SAMPLE_NS // max(fastest, 1)))
        return fastest

    def round(self, command: dict[str, Any]) -> list[int]:
        """Latencies in ns a call, for at least ``min_time_s`` seconds and ``min_calls`` samples.

        Where calls have inputs of their own, as many as every model makes, from a place that ``number`` tells: the
        models that take turns are timed on the same ones.
        """
        if len(self._runs) > 1:
            least = min(len(self._runs), _WALKED)
            self._next = command.get("number", 0) * least
            command = {"min_time_s": 0, "min_calls": least}
        samples: list[int] = []
        gc.collect()  # takes 200 ms where torch is loaded: not out of the round's time
        gc.disable()
        before = self._counters()
        end = time.perf_counter_ns() + int(command["min_time_s"] * 1e9)
        try:
            while len(samples) < command["min_calls"] or time.perf_counter_ns() < end:
                samples.append(self._sample())
                if len(samples) >= _MAX_SAMPLES:
                    break
        finally:
            gc.enable()
        self._add_energy(before, len(samples))
        drop = len(samples) > 4 and len(self._runs) == 1
        return samples[1:] if drop else samples  # the first finds the caches full of another's data

    def peak(self) -> int | None:
        """Peak resident bytes of this process: interpreter, engine and model."""
        return memory.peak()

    def joules(self) -> float | None:
        """Joules of one call, over all rounds; None where the machine doesn't tell."""
        return self._joules / self._counted if self._counted else None

    def device(self) -> dict[str, float | None]:
        """Of a GPU: ms of a call by its own events, median; bytes that this process holds there."""
        timed: list[float] = []
        held = self._gpu.memory()  # before the events of onnxruntime, which take a session of their own
        end = time.monotonic() + _EVENTS_S
        while self._events is not None and len(timed) < _EVENTS and (found := self._events()) is not None:
            timed.append(found)
            if time.monotonic() >= end:
                break
        return {"ms": statistics.median(timed) if timed else None, "bytes": held}

    def _counters(self) -> energy.Counters:
        return {**energy.read(), **self._gpu.counters()}

    def _add_energy(self, before: energy.Counters, samples: int) -> None:
        if (used := energy.joules(before, self._counters())) is not None:
            self._joules += used
            self._counted += samples * self._calls

    def _sample(self) -> int:
        run, calls = self._runs[self._next % len(self._runs)], self._calls
        self._next += 1
        start = time.perf_counter_ns()
        for _ in range(calls):
            run()
        return (time.perf_counter_ns() - start) // calls


def _open(command: dict[str, Any]) -> tuple[Engine, dict[str, Any]]:
    """Open ``path`` with ``runtime``, ``threads`` and ``device``; make feeds for ``inputs``, ``sizes`` and ``seed``.

    ``loader`` is ``module:function``, called with the path and ``loader_args``; ``inputs`` may be empty where the
    runtime knows them. Answers the load time and that until the first answer in ms, rows and tokens of one call, the
    axes of free size and the ns of the fastest of three calls.
    """
    inputs = tuple(InputSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in command["inputs"])
    options: dict[str, Any] = {}
    if command["loader"]:
        options = {"loader": partial(_import(command["loader"]), **command["loader_args"]), "inputs": inputs}
    runtime = get(command["runtime"], **options)
    reason = runtime.missing()
    if reason:
        raise MachineError(reason)
    start = time.perf_counter_ns()
    session = runtime.open(Path(command["path"]), command["threads"], command["device"])
    load_ms = (time.perf_counter_ns() - start) / 1e6
    feeds = [make_feeds(inputs or session.inputs, command["sizes"], command["seed"])]
    if not feeds[0]:
        raise UsageError("the inputs of the model are not known", "give `input_shape`")
    if command.get("samples"):
        feeds = read_feeds(Path(command["samples"]), {spec.name for spec in session.inputs or inputs})
    device = "cuda" if command["device"] == "cpu" and command["runtime"] in _ON_CUDA else command["device"]
    engine = Engine(session, feeds, device)
    first_ms = load_ms + engine.once() / 1e6
    facts = {"load_ms": load_ms, "first_ms": first_ms, "varied": len(feeds) > 1}
    facts |= _sizes(feeds[0], inputs or session.inputs, command["sizes"])
    return engine, {**facts, "call_ns": engine.first()}


def _sizes(feeds: dict[str, np.ndarray], inputs: tuple[InputSpec, ...], sizes: dict[str, int]) -> dict[str, Any]:
    """Rows and tokens of one call, and the axes of free size."""
    shape, free = next(iter(feeds.values())).shape, _free(inputs, sizes)
    tokens = sizes.get("sequence", SEQUENCE) if "sequence" in free else None
    return {"rows": int(shape[0]) if shape else 1, "tokens": tokens, "free": free}


def _profile(command: dict[str, Any]) -> dict[str, Any]:
    """Open as :func:`_open` does, with the runtime's profiler; ``calls`` count. Name, operator and ms of each node."""
    from compresskit.benchmark.profile import profile

    inputs = tuple(InputSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in command["inputs"])
    runtime = get(command["runtime"])
    path, threads, device = Path(command["path"]), command["threads"], command["device"]
    inputs = inputs or runtime.open(path, threads, device).inputs
    feeds = make_feeds(inputs, command["sizes"], command["seed"])
    nodes = profile(runtime, path, threads, device, feeds, command["calls"])
    return {"nodes": nodes, **_sizes(feeds, inputs, command["sizes"])}


def _free(inputs: tuple[InputSpec, ...], sizes: dict[str, int]) -> list[str]:
    """The axes that a caller may choose the size of: those whose other size gives other shapes."""
    shapes = [axis_sizes(spec, sizes) for spec in inputs]
    other = {axis: {**sizes, axis: sizes.get(axis, 0) + SEQUENCE + 1} for axis in ("batch", "sequence")}
    return [axis for axis, changed in other.items() if [axis_sizes(spec, changed) for spec in inputs] != shapes]


_ASKED: dict[str, Callable[[Engine, dict[str, Any]], Any]] = {
    "round": lambda engine, command: engine.round(command),
    "peak": lambda engine, _: engine.peak(),
    "energy": lambda engine, _: engine.joules(),
    "device": lambda engine, _: engine.device(),
}


def _import(reference: str) -> Callable[..., Any]:
    module, _, name = reference.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the loader {reference} can't be imported: {error}") from error
    return found


def _take_stdout() -> TextIO:
    """The real stdout for answers; from here on whatever an engine prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _listen(commands: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        commands.put(line)
    os._exit(0)


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
