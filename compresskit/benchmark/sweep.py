"""The same models at several points: batch sizes, threads and sequence lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compresskit.benchmark import machine
from compresskit.benchmark.forks import warm_parents
from compresskit.benchmark.run import Plan, Spec, Timed, time_models
from compresskit.errors import STOPS, stop_code
from compresskit.stage import Progress, silent


@dataclass(frozen=True)
class Point:
    """Where models are timed.

    Attributes:
        batch: Samples in one call.
        threads: Of one operator; 0 is one for each physical core.
        sequence: Tokens of a sample, where its axis may vary.
    """

    batch: int = 1
    threads: int = 0
    sequence: int = 128

    def of(self, spec: Spec) -> Spec:
        """A model at this point."""
        return replace(spec, threads=self.threads, sizes={**spec.sizes, "sequence": self.sequence})


def points(batches: Sequence[int], threads: Sequence[int], sequences: Sequence[int]) -> list[Point]:
    """Every combination, each once; the last axis changes the fastest."""
    found = [Point(b, t or machine.cores(), s) for b in batches for t in threads for s in sequences]
    return list(dict.fromkeys(found))


@warm_parents()
def sweep(
    specs: Sequence[Spec],
    where: Sequence[Point],
    *,
    plan: Plan | None = None,
    seed: int = 0,
    keep: bool = False,
    progress: Progress = silent,
) -> Timed:
    """Time models at each point; the speed-up is over the first model at the same point.

    A point is a bench of its own: fresh processes, turns, and an interval (see :mod:`compresskit.benchmark.run`).

    Args:
        specs: The models, the baseline first; their threads and sequence are those of the point.
        where: One point or more.
        plan: How long to measure at each.
        seed: Seed of the random inputs.
        keep: After Ctrl-C or SIGTERM give what is known so far; without it, or with nothing known, it goes on.
        progress: Called after each generation of processes.

    Raises:
        CompressKitError: As :func:`compresskit.benchmark.run.measure`; also where an axis of fixed size is to vary.
        KeyboardInterrupt, SystemExit: See ``keep``.
    """
    varied = frozenset(axis for axis in ("batch", "sequence") if len({getattr(p, axis) for p in where}) > 1)
    found = Timed()
    for number, point in enumerate(where):

        def told(what: str, done: int, total: int, number: int = number) -> None:
            progress(what, number * total + min(done, total), len(where) * total)

        own = [point.of(spec) for spec in specs]
        try:
            found.extend(
                time_models(own, batch=point.batch, seed=seed, plan=plan, varied=varied, keep=keep, progress=told)
            )
        except STOPS as error:
            if not (keep and found.measurements):
                raise
            found.stopped = stop_code(error)
        if found.stopped:
            break
    return found
