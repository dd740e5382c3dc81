"""How near each timed model comes to what this machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compresskit.benchmark.forks import warm_parents
from compresskit.benchmark.roofline import Kind, bandwidth, matrix_rate
from compresskit.errors import CompressKitError, InputError
from compresskit.report import Measurement
from compresskit.runner.candidate import Candidate
from compresskit.stage import Progress, silent

_SINGLE = ("onnxruntime", "openvino")
"""Runtimes that keep single precision: the float rate is theirs."""


@dataclass
class Machine:
    """What was measured of the machine so far, so that nothing is measured twice."""

    moved: dict[tuple[int, int], float] = field(default_factory=dict)
    rates: dict[tuple[Kind, str, int], float] = field(default_factory=dict)

    def bandwidth(self, size: int, threads: int) -> float:
        """Bytes a second, over a size that is rounded up to a power of two."""
        key = (1 << max(size, 1).bit_length(), threads)
        if key not in self.moved:
            self.moved[key] = bandwidth(*key)
        return self.moved[key]

    def rate(self, kind: Kind, runtime: str, threads: int) -> float:
        """Operations a second."""
        key = (kind, runtime, threads)
        if key not in self.rates:
            self.rates[key] = matrix_rate(*key)
        return self.rates[key]

    def figures(self) -> list[str]:
        """All that was measured, in words."""
        rates = [
            f"{runtime} {kind} {rate / 1e9:.0f} G operations/s with {_threads(n)}"
            for (kind, runtime, n), rate in self.rates.items()
        ]
        return rates + [
            f"{size / 1e6:.3g} MB at {rate / 1e9:.3g} GB/s with {_threads(n)}" for (size, n), rate in self.moved.items()
        ]


@warm_parents()
def limits(
    models: Sequence[Candidate], timed: Sequence[Measurement], *, progress: Progress = silent
) -> tuple[list[Measurement], list[str]]:
    """For each latency on a CPU what bounds it: ``traffic``, ``operations``, ``limit`` and ``of_limit``; and notes.

    The limit is the longer of moving the bytes and computing the products; a call can't be faster, but for caches that
    keep weights from call to call.

    Args:
        models: Those that were timed.
        timed: Their figures.
        progress: Called for each model and point.
    """
    machine = Machine()
    found: list[Measurement] = []
    notes: list[str] = []
    by_name = {model.name: model for model in models}
    latencies = [m for m in timed if m.name == "latency_p50"]
    for number, latency in enumerate(latencies):
        progress("limits", number, len(latencies))
        model = by_name[latency.model]
        if model.runtime not in _SINGLE or model.device != "cpu":
            continue
        try:
            bound = _bound(model, latency, machine)
        except CompressKitError as error:
            notes.append(f"no limit is known for {model.name}: {error.message}")
            continue
        found += bound.figures(latency)
        notes.append(f"limit: {_named(latency, swept=len(latencies) > len(models))} {bound.sentence(latency)}")
    if measured := machine.figures():
        notes.append(f"limit: measured here: {'; '.join(measured)}")
    return found, list(dict.fromkeys(notes))


@dataclass(frozen=True)
class _Bound:
    """What a call costs at least: bytes that are moved, operations, and the milliseconds of either."""

    bytes: int
    operations: int
    moving: float
    computing: float

    @property
    def ms(self) -> float:
        return max(self.moving, self.computing)

    def figures(self, latency: Measurement) -> list[Measurement]:
        """For the report, beside a latency."""
        common = {"n": 1, "low": None, "high": None}
        return [
            latency.model_copy(update={"name": name, "value": value, "unit": unit, **common})
            for name, value, unit in (
                ("traffic", float(self.bytes), "bytes"),
                ("operations", float(self.operations), ""),
                ("limit", self.ms, "ms"),
                ("of_limit", self.ms / latency.value, ""),
            )
        ]

    def sentence(self, latency: Measurement) -> str:
        """How near the latency comes to it."""
        what = "memory" if self.moving >= self.computing else "arithmetic"
        text = (
            f"runs at {100 * self.ms / latency.value:.0f} % of what {what} allows here: "
            f"{self.bytes / 1e6:.3g} MB and {self.operations / 1e9:.3g} G operations a call, at best {self.ms:.3g} ms"
        )
        if self.ms > latency.value:
            text += "; more than 100 % means that caches hold the data or that other programs slowed the measurement"
        return text


def _bound(model: Candidate, latency: Measurement, machine: Machine) -> _Bound:
    """What bounds a call of a model.

    Raises:
        CompressKitError: That can't be known.
    """
    from compresskit.ops.onnx_traffic import traffic

    threads = latency.threads or 1
    cost = traffic(model.path, {"batch": latency.batch or 1, "sequence": latency.sequence or 1})
    if cost is None:
        raise InputError("ONNX could not infer its shapes")
    moving = 1e3 * cost.bytes / machine.bandwidth(cost.bytes, threads)
    computing = 0.0
    counts: tuple[tuple[Kind, int], ...] = (("float32", cost.float_operations), ("int8", cost.int8_operations))
    for kind, operations in counts:
        if operations:
            computing += 1e3 * operations / machine.rate(kind, model.runtime, threads)
    return _Bound(cost.bytes, cost.float_operations + cost.int8_operations, moving, computing)


def _named(latency: Measurement, *, swept: bool) -> str:
    """The model, and where it was timed if there are several such points."""
    if not swept:
        return latency.model
    tokens = f", {latency.sequence} tokens" if latency.sequence else ""
    return f"{latency.model} (batch {latency.batch}, threads {latency.threads}{tokens})"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
