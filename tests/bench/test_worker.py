"""The worker's own loop, without a process around it."""

import gc
import time

from compresskit.bench.worker import Engine


class Idle:
    """A session whose calls take a millisecond."""

    inputs = outputs = ()

    def run(self, feeds):
        time.sleep(0.001)
        return {}


def test_a_round_lasts_its_time_however_long_the_garbage_collection_takes(monkeypatch):
    engine = Engine(Idle(), {})
    engine.first()
    monkeypatch.setattr(gc, "collect", lambda: time.sleep(0.2))
    samples = engine.round({"min_time_s": 0.1, "min_calls": 1})
    assert sum(samples) > 0.05e9
    assert gc.isenabled()
