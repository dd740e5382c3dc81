"""Which runtime to take: every one that is installed and opens the models, timed, and the fastest of them named."""

from __future__ import annotations

from collections.abc import Sequence

from compresskit.benchmark.run import change, refusal
from compresskit.errors import InputError
from compresskit.report import Measurement, point_name, points_of
from compresskit.runner.candidate import Candidate
from compresskit.runtimes import get, names

_LEFT_OUT = {
    "openvino-bf16": "it computes in bfloat16, so its outputs differ",
    "torch-compile": "it compiles in each process, which takes minutes",
}


def everywhere() -> tuple[list[str], list[str]]:
    """(names of the runtimes that are installed and keep the arithmetic, a note on each of the others)."""
    found, notes, absent = [], [], []
    for name in names():
        lack = get(name).missing()
        if lack:
            if name.startswith("onnxruntime-"):
                absent.append(name)
            elif name not in _LEFT_OUT:
                notes.append(f"not tried: {lack}")
        elif name in _LEFT_OUT:
            notes.append(f"not tried: {name}, because {_LEFT_OUT[name]}; `runtime` {name} times it")
        else:
            found.append(name)
    if absent:
        notes.append(f"not tried, not installed: {', '.join(absent)}; compresskit doctor says how to get them")
    return found, notes


def able(models: Sequence[Candidate], *, batch: int, sequence: int) -> tuple[list[Candidate], list[str]]:
    """(the models that their runtime opens and runs, a note on each of the others).

    Args:
        models: The baseline first.
        batch: Samples in one call.
        sequence: Length of the sequence axis where it may vary.

    Raises:
        InputError: None of them runs.
    """
    found, notes = [], []
    for model in models:
        reason = refusal(model.spec({"sequence": sequence}), batch=batch)
        if reason is None:
            found.append(model)
        else:
            notes.append(f"{model.name} does not run: {reason}")
    if not found:
        raise InputError(notes[0] if notes else "no runtime is installed", "; ".join(notes[1:]))
    return found, notes


def recommendation(models: Sequence[Candidate], timed: Sequence[Measurement]) -> list[str]:
    """What to take, at each point: the fastest pair of model and runtime, where it is proven faster than the first."""
    points = points_of(timed)
    found = []
    for point in points:
        where = point_name(point, points)
        own = [m for m in timed if m.point == point]
        found += [f"fastest here{f' at {where}' if where else ''}{said}" for said in _fastest(models, own)]
    return found


def _fastest(models: Sequence[Candidate], timed: Sequence[Measurement]) -> list[str]:
    """The end of the sentence, for one point."""
    latency = {m.model: m.value for m in timed if m.name == "latency_p50"}
    known = [model for model in models if model.name in latency]
    if len(known) < 2:
        return [f": {known[0].runtime}, the only one that runs the model"] if known else []
    base, best = known[0].name, min(known, key=lambda model: latency[model.name]).name
    speedups = {m.model: m for m in timed if m.name == "speedup"}
    if best not in speedups:
        proven = all(change(m) == "slower" for m in speedups.values())
        return [f": {base}" + ("" if proven else "; not all others are significantly slower")]
    ratio = speedups[best]
    interval = f" (95 % interval {ratio.low:.2f} to {ratio.high:.2f})" if ratio.low and ratio.high else ""
    text = f"{best} {ratio.value:.2f}× {base}{interval}"
    return [f": {text}" if change(ratio) == "faster" else f", but not significant: {text}"]
