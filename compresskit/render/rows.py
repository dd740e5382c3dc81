"""A report as rows of text: what the terminal and Markdown both draw."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from compresskit.errors import listing
from compresskit.render import figures
from compresskit.report import Gate, Measurement, ModelEntry, Report, Verdict, points_of

_TIMED = ("latency_p50", "latency_p95", "latency_p99", "throughput", "speedup")
_ANY_BATCH = ("load", "peak_memory")
_SPEED = _TIMED + _ANY_BATCH
_MACHINE = ("first_call", "energy", "device_time", "device_memory", "traffic", "operations", "limit", "of_limit")
_WRITING = ("first_token", "prefill", "decode", "decode_speedup")
NO_QUALITY = (*_SPEED, "max_abs", *_MACHINE, *_WRITING)
"""Figures that don't say how good a model's answers are."""
_ALIKE = 0.95
_TYPED = re.compile(r"(\S+) (\d+ bit.*)")
"""What a layer is, and the bits that it got."""
_MANY = {"matrix": "matrices", "kernel": "kernels"}
REASONS_SHOWN = 6
STEP_HEADER = ("step", "", "size", "quality", "cost")
TIMING_HEADER = ("model", "p50 ms", "p95 ms", "p99 ms", "per s", "load ms", "memory", "speedup")
WRITING_HEADER = ("model", "engine", "first token ms", "prefill/s", "decode/s", "memory", "decode speedup")
Run = tuple[str, int | None]


@dataclass(frozen=True)
class Row:
    """One model. ``grew`` and ``faster`` compare it with the baseline; None where that can't be told."""

    model: str
    size: str
    smaller: str
    quality: tuple[str, ...]
    latency: str
    speedup: str
    grew: bool
    faster: bool | None


@dataclass(frozen=True)
class Timings:
    """Speed figures of one kind: cells under ``header``, and ``faster`` for each line."""

    run: str
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]
    faster: list[bool | None]


def runs(report: Report) -> list[Run]:
    """The pairs of runtime and batch that were timed, in the order of the report."""
    return list(dict.fromkeys((m.runtime, m.batch) for m in report.measurements if m.name in _TIMED))


def run_name(run: Run) -> str:
    """``onnxruntime, batch 8``; empty when neither is known."""
    runtime, batch = run
    return ", ".join(part for part in (figures.clean(runtime), f"batch {batch}" if batch else "") if part)


def word(report: Report) -> str:
    """The verdict; ``MEASURED`` where nothing was held to a limit."""
    return "MEASURED" if report.verdict is Verdict.UNVERIFIED and not report.gates else report.verdict.value


def is_sweep(report: Report) -> bool:
    """True where models were timed at several points; :mod:`compresskit.render.sweep` draws those."""
    return len(points_of(m for m in report.measurements if m.threads is not None)) > 1


def rows(report: Report) -> list[Row]:
    """The main table; latency and speedup are of the first run, and :func:`timings` has them all."""
    run = next((run for run in runs(report) if _timed(report, run)), ("", None))
    out = []
    for entry in report.models:
        base = report.models[0]
        latency = _find(report, entry.name, "latency_p50", run)
        ratio = _find(report, entry.name, "speedup", run)
        row = Row(
            model=figures.clean(entry.name),
            size=figures.size(entry.bytes),
            smaller=figures.DASH if entry is base else smaller(base, entry),
            quality=quality(report, entry),
            latency=f"{figures.milliseconds(latency.value)} ms" if latency else figures.DASH,
            speedup=figures.speedup(ratio),
            grew=entry.bytes > base.bytes,
            faster=faster(ratio),
        )
        out.append(row)
    return out


def _timed(report: Report, run: Run) -> bool:
    return any(m.name == "latency_p50" and (m.runtime, m.batch) == run for m in report.measurements)


def smaller(base: ModelEntry, entry: ModelEntry) -> str:
    """How many times smaller a model is than the original, or bigger; a dash where that can't be told."""
    if not base.bytes or not entry.bytes:
        return figures.DASH
    ratio = base.bytes / entry.bytes
    return figures.times(ratio) if ratio >= 1 else f"{figures.times(1 / ratio)} bigger"


def quality(report: Report, entry: ModelEntry) -> tuple[str, ...]:
    """Every quality figure of a model, with its distance to the baseline's."""
    base = report.models[0].name
    out = []
    for found in report.measurements:
        if found.model == entry.name and found.name not in NO_QUALITY:
            reference = report.values(found.name).get(base) if entry.name != base else None
            out.append(figures.quality(found, reference))
    return tuple(out)


def timings(report: Report) -> list[Timings]:
    """Every speed figure, run by run; empty when the main table already says it all."""
    timed, out = runs(report), _writing(report)
    if is_sweep(report) or (len(timed) < 2 and _command(report) != "bench"):
        return out
    for run in timed:
        lines, paces = [], []
        for entry in report.models:
            found = {name: _find(report, entry.name, name, run) for name in _SPEED}
            if any(found.values()):
                lines.append((figures.clean(entry.name), *_timing_cells(found)))
                paces.append(faster(found["speedup"]))
        out.append(Timings(run_name(run), TIMING_HEADER, lines, paces))
    return out


def _writing(report: Report) -> list[Timings]:
    """The figures of language models that write; empty where none was timed."""
    lines: list[tuple[str, ...]] = []
    paces = []
    for entry in report.models:
        found = {m.name: m for m in report.measurements if m.model == entry.name}
        if (decode := found.get("decode")) is None:
            continue
        first, prefill, memory = (found.get(name) for name in ("first_token", "prefill", "peak_memory"))
        lines.append(
            (
                figures.clean(entry.name),
                figures.clean(decode.runtime),
                figures.milliseconds(first.value if first else None),
                figures.amount(prefill.value if prefill else None),
                figures.amount(decode.value),
                figures.DASH if memory is None else figures.size(memory.value),
                figures.speedup(found.get("decode_speedup")),
            )
        )
        paces.append(faster(found.get("decode_speedup")))
    return [Timings("generation", WRITING_HEADER, lines, paces)] if lines else []


def _timing_cells(found: dict[str, Measurement | None]) -> tuple[str, ...]:
    value = {name: None if figure is None else figure.value for name, figure in found.items()}
    memory = value["peak_memory"]
    return (
        *(figures.milliseconds(value[name]) for name in ("latency_p50", "latency_p95", "latency_p99")),
        figures.amount(value["throughput"]),
        figures.milliseconds(value["load"]),
        figures.DASH if memory is None else figures.size(memory),
        figures.speedup(found["speedup"]),
    )


def steps(report: Report) -> list[tuple[str, ...]]:
    """What each step of a recipe did: cells under ``STEP_HEADER``; empty for a command that is no recipe."""
    return [
        (
            f"{index}. {figures.clean(step.name)}",
            step.state,
            figures.DASH if step.bytes is None else figures.size(step.bytes),
            figures.DASH if step.value is None else f"{figures.clean(step.metric)} {figures.number(step.value)}",
            figures.DASH if step.drop is None else f"{0 - step.drop:+.2f} pt",
        )
        for index, step in enumerate(report.steps, 1)
    ]


def subject(report: Report, output: str = "") -> str:
    """What was looked at: ``m.pt → out/model.onnx``, ``3 models against m.pt``, or the one model."""
    if not report.models:
        return figures.clean(report.command)
    base, last = report.models[0], report.models[-1]
    if last is base:
        return figures.clean(base.path)
    names = (base.name, last.name) if base.path == last.path else (base.path, output or last.path)
    if len(report.models) == 2 or output:
        return " → ".join(map(figures.clean, names))
    one = base.name if any(entry.path == base.path for entry in report.models[1:]) else base.path
    return f"{len(report.models) - 1} models against {figures.clean(one)}"


def headline(report: Report, output: str = "") -> str:
    """The line behind the verdict: what became what, and how the last model compares with the first."""
    shown = subject(report, output)
    if not report.models or len(report.models) > 2:
        return shown
    base, last = report.models[0], report.models[-1]
    if last is base:
        return "  ".join([shown, ", ".join(quality(report, base))]).strip()
    facts = []
    if base.bytes and last.bytes:
        facts.append(smaller(base, last) + ("" if last.bytes > base.bytes else " smaller"))
    found = next((m for m in report.measurements if m.name == "speedup" and m.model == last.name), None)
    if found is not None and found.value > 0:
        facts.append(_pace(found))
    return f"{shown}  {', '.join([*facts, *quality(report, last)[:1]])}"


def _pace(found: Measurement) -> str:
    pace = faster(found)
    if pace is None and found.low is not None and found.high is not None:
        return "as fast" if found.low > _ALIKE and found.high < 1 / _ALIKE else "speed unclear"
    return f"{figures.times(found.value)} faster" if found.value >= 1 else f"{figures.times(1 / found.value)} SLOWER"


def gate_state(gate: Gate) -> str:
    """``passed``, ``failed`` or ``inconclusive``."""
    return {True: "passed", False: "failed", None: "inconclusive"}[gate.passed]


def gate_text(gate: Gate) -> str:
    """A gate's figures on one line: ``max-drop: 0.02, limit 0.5pt (default): reason``."""
    value = _gate_value(gate)
    default = "" if gate.asked else " (default)"
    reason = f": {figures.prose(gate.reason)}" if gate.reason else ""
    return f"{figures.clean(gate.name)}: {value}, limit {figures.clean(gate.limit)}{default}{reason}"


def _gate_value(gate: Gate) -> str:
    if gate.value is None:
        return "not known"
    if gate.unit == "bytes":
        return figures.size(gate.value)
    if gate.unit == "×":
        return figures.times(gate.value)
    return f"{gate.value:.3g}{f' {figures.clean(gate.unit)}' if gate.unit else ''}"


def done_line(report: Report) -> str:
    """How many layers were changed, by what they got; empty when none.

    ``5 layers changed: 4 Conv2d and 1 Linear at 4 bit, group 32``.
    """
    done = report.coverage.done
    if not done:
        return ""
    parts: list[str] = []
    typed: dict[str, list[str]] = {}
    for text, count in Counter(done.values()).most_common():
        if (named := _TYPED.fullmatch(text)) is None:
            parts.append(f"{count} {figures.clean(text)}")
        else:
            kind, bits = named.groups()
            typed.setdefault(bits, []).append(f"{count} {figures.clean(_MANY.get(kind, kind) if count > 1 else kind)}")
    parts += [f"{' and '.join(kinds)} at {figures.clean(bits)}" for bits, kinds in typed.items()]
    return f"{_layers(len(done))} changed: {', '.join(parts)}"


def skipped_lines(report: Report) -> list[str]:
    """The layers left alone, one line a reason, the most frequent first; the rest is counted."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in report.coverage.skipped.items():
        by_reason.setdefault(reason, []).append(name)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    out = [f"{unchanged(report, names)} ({figures.prose(reason)}): {listing(names)}" for reason, names in ordered]
    if len(ordered) > REASONS_SHOWN:
        rest = sum(len(names) for _, names in ordered[REASONS_SHOWN:])
        out[REASONS_SHOWN:] = [f"{_layers(rest)} unchanged for other reasons: see report.json"]
    return out


def unchanged(report: Report, names: Sequence[str]) -> str:
    """How many layers were left as they are, and their bytes where these are known."""
    size = sum(report.coverage.left.get(name, 0) for name in names)
    return f"{_layers(len(names))} unchanged{f', {figures.size(size)}' if size else ''}"


def explanation(report: Report) -> str:
    """What a verdict that is neither PASS nor FAIL means, and what to do; empty for those two."""
    if report.verdict is Verdict.INCONCLUSIVE and not report.gates:
        return "The timings are too noisy to tell which model is faster. Use more --processes or an idle machine."
    if report.verdict is Verdict.INCONCLUSIVE:
        return "Not every gate could be decided. Each inconclusive line names what to do."
    if report.verdict is Verdict.UNVERIFIED and report.gates and not any(m.runtime for m in report.measurements):
        return (
            "The model was not run: only sizes and the rounding error of the weights are known. To run it, give --arch."
        )
    if report.verdict is Verdict.UNVERIFIED and report.gates and _command(report) == "bench":
        command = "evaluate" if len(report.models) == 1 else "compare"
        return f"bench measures only size and speed. To measure quality, use compresskit {command} with --data."
    if report.verdict is Verdict.UNVERIFIED and report.gates:
        option = "--data" if _command(report) in ("evaluate", "compare") else "--eval-data"
        return (
            "No metric was measured. Only the similarity to the original's outputs is known. To measure quality, "
            f"give {option} with labels."
        )
    return ""


def _command(report: Report) -> str:
    """The command's name, behind the program's."""
    words = [word for word in report.command.split() if word != "compresskit"]
    return words[0] if words else ""


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _find(report: Report, model: str, name: str, run: Run) -> Measurement | None:
    runtime, batch = run
    own = [m for m in report.measurements if (m.model, m.name, m.runtime) == (model, name, runtime)]
    exact = next((m for m in own if m.batch == batch), None)
    # Load time and memory may be measured once for all batches.
    return exact or next((m for m in own if m.batch is None and name in _ANY_BATCH), None)


def faster(found: Measurement | None) -> bool | None:
    """True or False when the interval (or, without one, the value) lies on one side of 1, else None."""
    if found is None or found.value == 1:
        return None
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    return True if low > 1 else False if high < 1 else None
