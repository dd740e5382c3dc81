"""What Prometheus reads. Labels are few and fixed: no client can add one."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CODES = frozenset({200, 400, 404, 405, 408, 413, 415, 500, 503, 504})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server.

    Args:
        taken: Gives how many requests are being read, wait or run.
        places: How many may.
    """

    def __init__(self, taken: Callable[[], int], places: int) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "compresskit_requests", "Answered requests.", ("route", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "compresskit_infer_seconds", "Time from a whole request to its answer, waiting included.",
            buckets=_BUCKETS, registry=self._registry,
        )  # fmt: skip
        queue = Gauge("compresskit_queue_depth", "Requests that are read, wait or run.", registry=self._registry)
        queue.set_function(taken)
        limit = Gauge("compresskit_queue_limit", "Requests beyond which 503 is answered.", registry=self._registry)
        limit.set(places)
        ProcessCollector(registry=self._registry)  # memory and CPU; tells nothing where there is no /proc

    def answered(self, route: str, code: int) -> None:
        """Count an answer; ``route`` is one of the server's own words."""
        self._requests.labels(route, str(code) if code in _CODES else "other").inc()

    def took(self, seconds: float) -> None:
        """Count the time of one inference request that was answered with a result."""
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)
