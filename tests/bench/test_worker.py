"""The worker's own loop, without a process around it."""

import gc
import os
import signal
import sys
import time
from contextlib import ExitStack

import pytest

from compresskit.benchmark.pool import Worker
from compresskit.benchmark.worker import Engine


class Idle:
    """A session whose calls take a millisecond."""

    inputs = outputs = ()

    def run(self, feeds):
        time.sleep(0.001)
        return {}


def test_a_round_lasts_its_time_however_long_the_garbage_collection_takes(monkeypatch):
    engine = Engine(Idle(), [{}])
    engine.first()
    monkeypatch.setattr(gc, "collect", lambda: time.sleep(0.2))
    samples = engine.round({"min_time_s": 0.1, "min_calls": 1})
    assert sum(samples) > 0.05e9
    assert gc.isenabled()


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_whole_group_is_the_parents_to_answer(name: str) -> None:
    with ExitStack() as stack:
        worker = Worker("a", "onnxruntime", 60, stack)
        assert worker.answer() == "ready"
        os.kill(worker._process.pid, getattr(signal, name))
        assert worker.ask(do="bandwidth", size=1 << 16, threads=1) is not None
