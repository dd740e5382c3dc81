"""What is timed, how long, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.benchmark.stats import Look
from compresskit.model import InputSpec


@dataclass(frozen=True)
class Spec:
    """One model under one runtime.

    Attributes:
        name: The model's name in the report.
        path: What the runtime opens.
        runtime: One of :func:`compresskit.runtimes.names`.
        threads: Threads of one operator; 0 is one for each physical core.
        device: Device, as the runtime names it.
        inputs: What goes in; empty where the runtime reads it off the file.
        sizes: Sizes of named axes (``{"batch": 1, "sequence": 128}``); ``batch`` is added by :func:`bench`.
        loader: ``module:function`` that gives a module for a path; for torch.
        loader_args: Keyword arguments of the loader; JSON.
        samples: By batch size a file of real inputs, see :func:`compresskit.benchmark.feeds.read_feeds`; for other
            sizes inputs are made up.
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
    samples: Mapping[int, Path] = field(default_factory=dict)


@dataclass
class Timing:
    """What was measured of one model, a list item for each process.

    Attributes:
        rounds: By process and round, the latencies of one call in ns.
        load_ms: Time to open the model, by process.
        first_ms: Time from the closed file to the first answer, by process: opening and the first call.
        peak: Peak resident bytes, by process; empty where the system doesn't tell.
        joules: Energy of one call, by process; empty where the machine doesn't tell.
        device_ms: A call by the events of a GPU, by process; empty elsewhere.
        device_bytes: Memory on a GPU, by process; empty elsewhere.
        rows: Batch size of the inputs that were in fact fed.
        tokens: Length of the sequence axis that was fed; None where the inputs have none of free size.
        varied: Each call had other samples.
    """

    rounds: list[list[np.ndarray]] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    device_bytes: list[int] = field(default_factory=list)
    rows: int = 1
    tokens: int | None = None
    varied: bool = False

    def extend(self, further: Timing) -> None:
        """Add what later processes measured."""
        self.rounds += further.rounds
        self.load_ms += further.load_ms
        self.first_ms += further.first_ms
        self.peak += further.peak
        self.joules += further.joules
        self.device_ms += further.device_ms
        self.device_bytes += further.device_bytes
        self.rows, self.tokens, self.varied = further.rows, further.tokens, further.varied

    def medians(self) -> list[list[float]]:
        """Median latency by process and round, ns."""
        return [[float(np.median(turn)) for turn in process] for process in self.rounds]

    def means(self) -> list[list[float]]:
        """Mean latency by process and round, ns."""
        return [[float(np.mean(turn)) for turn in process] for process in self.rounds]

    def typical(self) -> list[list[float]]:
        """What a call takes, by process and round, ns: the median; the mean where calls have other samples each."""
        return self.means() if self.varied else self.medians()


@dataclass(frozen=True)
class Plan:
    """How long to measure; the default takes 2 to 6 seconds for two small models.

    Attributes:
        rounds: Turns of each model in one process.
        processes: How often all processes are restarted; fewer than two give no interval. More of these, not more
            rounds, is what sharpens a comparison.
        more: Further processes where the first leave it open which model is faster; 0 for none.
        early: Numbers of processes after which a comparison may end before ``processes`` are through, and how sure it
            must be there.
        bars: Speed-ups that each model must be known to reach or to miss before the measuring ends.
        turn_s: Least length of a turn, seconds; it holds at least one call.
        warmup_s: Longest warm-up of one process, seconds; it ends when three turns in a row agree within 5 %.
        budget_s: About how long all turns may take, seconds; slow models get fewer rounds, at least 3.
        timeout_s: Longest wait for one answer of a process, seconds.
        fresh: Start an interpreter for each process, as all systems but Linux do; else a process is forked from one
            that has imported its engine and done nothing else.
    """

    rounds: int = 5
    processes: int = 7
    more: int = 7
    early: tuple[tuple[int, Look], ...] = (
        (3, Look(error=0.0005, same=0.005, sharp=True)),
        (5, Look(error=0.0015, same=0.01, sharp=True)),
    )
    bars: tuple[float, ...] = ()
    turn_s: float = 0.04
    warmup_s: float = 0.5
    budget_s: float = 60.0
    timeout_s: float = 600.0
    fresh: bool = False

    def exactly(self, processes: int) -> Plan:
        """The same with so many processes, whatever they say."""
        return replace(self, processes=processes, more=0, early=())

    def look(self, processes: int) -> Look | None:
        """How sure a comparison must be to end after so many processes; None where it goes on in any case.

        The errors of ``faster`` and ``slower`` come to 1 % over all looks, half of it for the last one.
        """
        if processes == self.processes:
            return Look(error=0.003)
        return next((look for n, look in self.early if n == processes < self.processes), None)
