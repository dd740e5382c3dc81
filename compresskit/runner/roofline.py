"""How near each timed model comes to what this machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compresskit.bench.roofline import Kind, bandwidth, matrix_rate
from compresskit.errors import CompressKitError
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
    from compresskit.ops.onnx_traffic import traffic

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
        sizes = {"batch": latency.batch or 1, "sequence": latency.sequence or 1}
        threads = latency.threads or 1
        try:
            cost = traffic(model.path, sizes)
            if cost is None:
                notes.append(f"no limit is known for {model.name}: ONNX could not infer its shapes")
                continue
            parts = [1e3 * cost.bytes / machine.bandwidth(cost.bytes, threads)]
            computing = 0.0
            for kind, operations in (("float32", cost.float_operations), ("int8", cost.int8_operations)):
                if operations:
                    computing += 1e3 * operations / machine.rate(kind, model.runtime, threads)  # type: ignore[arg-type]
            parts.append(computing)
        except CompressKitError as error:
            notes.append(f"no limit is known for {model.name}: {error.message}")
            continue
        bound = max(parts)
        total = cost.float_operations + cost.int8_operations
        for name, value, unit in (
            ("traffic", float(cost.bytes), "bytes"),
            ("operations", float(total), ""),
            ("limit", bound, "ms"),
            ("of_limit", bound / latency.value, ""),
        ):
            found.append(
                latency.model_copy(
                    update={"name": name, "value": value, "unit": unit, "n": 1, "low": None, "high": None}
                )
            )
        what = "memory" if parts[0] >= parts[1] else "arithmetic"
        place = (
            f" (batch {latency.batch}, threads {threads}{f', {latency.sequence} tokens' if latency.sequence else ''})"
        )
        notes.append(
            f"limit: {model.name}{place if len(latencies) > len(models) else ''} runs at "
            f"{100 * bound / latency.value:.0f} % of what {what} allows here: "
            f"{cost.bytes / 1e6:.3g} MB and {total / 1e9:.3g} G operations a call, at best {bound:.3g} ms"
            + (
                "; more than 100 %: caches hold it, or neighbours slowed that measurement"
                if bound > latency.value
                else ""
            )
        )
    shown = [
        f"{runtime} {kind} {rate / 1e9:.0f} G operations/s with {_threads(n)}"
        for (kind, runtime, n), rate in machine.rates.items()
    ]
    shown += [
        f"{size / 1e6:.3g} MB at {rate / 1e9:.3g} GB/s with {_threads(n)}" for (size, n), rate in machine.moved.items()
    ]
    if shown:
        notes.append(f"limit: measured here: {'; '.join(shown)}")
    return found, list(dict.fromkeys(notes))


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"
