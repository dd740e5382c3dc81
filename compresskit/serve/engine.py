"""An ONNX model in several threads."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.benchmark.feeds import make_feeds
from compresskit.errors import CompressKitError, InputError
from compresskit.model import InputSpec
from compresskit.runtimes import get
from compresskit.serve.tensors import DATATYPES, check_types, free
from compresskit.serve.workers import Workers

if TYPE_CHECKING:
    import numpy as np

    from compresskit.runtimes.base import Session

_WARM_UP = 3


class Engine(Workers):
    """Runs an ONNX model for several clients.

    Args:
        sessions: One that all threads share, or one for each thread.
        workers: Threads.
        waiting: Places beyond those of the threads.
    """

    def __init__(self, sessions: Sequence[Session], workers: int, waiting: int) -> None:
        super().__init__(workers, waiting)
        self.inputs: tuple[InputSpec, ...] = sessions[0].inputs
        self.outputs = sessions[0].outputs
        self._sessions: queue.SimpleQueue[Session] = queue.SimpleQueue()
        for index in range(workers):
            self._sessions.put(sessions[index % len(sessions)])
        self._described: list[dict[str, Any]] = []

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass, for the threads.

        Raises:
            InputError: The engine refuses these inputs.
            MachineError: Out of memory.
        """
        session = self._sessions.get()
        try:
            return session.run(feeds)
        finally:
            self._sessions.put(session)

    def warm_up(self) -> None:
        """Run the model on random inputs in each session, and learn what its outputs look like.

        Raises:
            InputError: It can't be run, or takes or gives what can't be served.
            UsageError: The size of an axis isn't known.
        """
        check_types(self.inputs, {})
        feeds = make_feeds(self.inputs, {"batch": 1})
        for _ in range(_WARM_UP * self._sessions.qsize()):  # the queue goes round
            results = self.run(feeds)
        check_types(self.inputs, results)
        more = self._larger()
        for name, array in results.items():
            other = more.get(name)
            known = other is not None and other.ndim == array.ndim
            twin = other.shape if other is not None and known else array.shape
            shape = [size if size == again else -1 for size, again in zip(array.shape, twin, strict=True)]
            self._described.append({"name": name, "datatype": DATATYPES[array.dtype.name], "shape": shape})

    def _larger(self) -> dict[str, np.ndarray]:
        """What comes out of two rows, which tells the axes that vary; empty where the model takes only one."""
        try:
            return self.run(make_feeds(self.inputs, {"batch": 2, "sequence": 2}))
        except CompressKitError:
            return {}

    def describe(self) -> dict[str, Any]:
        """Inputs and outputs as the protocol writes them."""
        inputs = [{"name": s.name, "datatype": DATATYPES[s.dtype], "shape": free(s)} for s in self.inputs]
        return {"inputs": inputs, "outputs": self._described}


def open_engine(path: Path, runtime: str, *, threads: int, workers: int, waiting: int) -> Engine:
    """Open a checked ONNX file and warm it up.

    Args:
        path: The file.
        runtime: Name of the runtime; onnxruntime shares one session, the others open one for each worker.
        threads: Of one operator; 0 is the runtime's choice.
        workers: Requests that run at the same time.
        waiting: Requests that may wait for them.

    Raises:
        InputError: The runtime refuses the file, or it can't be served.
        MachineError: The runtime isn't installed, or memory is short.
        UsageError: The size of an input's axis isn't known.
    """
    found = get(runtime)
    count = 1 if runtime == "onnxruntime" else workers
    engine = Engine([found.open(path, threads) for _ in range(count)], workers, waiting)
    if not engine.inputs:
        raise InputError(f"{path.name} takes no input", "a model that computes one thing needs no server")
    engine.warm_up()
    return engine
