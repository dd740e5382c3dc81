"""The top of the page: the verdict, three figures, and the limits, the one that decided first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compresskit.render import figures, rows
from compresskit.render.html.chart import interval, metric
from compresskit.render.html.markup import folded, section, text, words
from compresskit.report import Gate, Measurement, ModelEntry, Report

_SIGNS = {"passed": "✓", "failed": "✗", "inconclusive": "?"}
_VERDICTS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?", "UNVERIFIED": "?", "MEASURED": "•"}
_ORDER = ("failed", "inconclusive", "passed")
_SHOWN = 4
"""Limits that are all shown."""
Tile = tuple[str, str, str]
"""What it is, the figure, and what to hold it against."""


def top(report: Report, output: str) -> str:
    """The verdict in a word, what became what, size, quality and speed."""
    word = rows.word(report)
    note = rows.explanation(report)
    tiles = [tile for tile in (_size(report), _quality(report), _speed(report)) if tile is not None]
    boxes = "".join(
        f'<div class="tile"><h3>{text(what)}</h3><b>{words(big)}</b><p>{words(small)}</p></div>'
        for what, big, small in tiles
    )
    return (
        f'<header><div class="answer"><span class="badge {word}">{_VERDICTS[word]} {word}</span>'
        f"<h1>{words(rows.subject(report, output))}</h1></div>"
        f'<p class="soft"><code>{text(report.command)}</code></p>{f"<p>{words(note)}</p>" if note else ""}</header>'
        f"{f'<div class=tiles>{boxes}</div>' if boxes else ''}"
    )


def limits(report: Report) -> str:
    """Each gate, the one that the verdict follows from at the top and in its colour."""
    ordered = sorted(
        report.gates, key=lambda g: (_ORDER.index(rows.gate_state(g)), not g.asked, g.name.endswith("ONNX parity"))
    )
    if not ordered:
        return ""
    # Where many passed, what they are called is enough at first.
    open_ = [gate for index, gate in enumerate(ordered) if index == 0 or not gate.passed or len(ordered) <= _SHOWN]
    rest = [gate for gate in ordered if gate not in open_]
    items = "".join(_gate(gate, first=gate is ordered[0]) for gate in open_)
    more = f'<ul class="gates">{"".join(_gate(gate, first=False) for gate in rest)}</ul>' if rest else ""
    return section("Limits", f'<ul class="gates">{items}</ul>', folded(f"{len(rest)} more passed", more))


def _gate(gate: Gate, *, first: bool) -> str:
    state = rows.gate_state(gate)
    said, _, reason = rows.gate_text(gate).partition(f": {figures.prose(gate.reason)}" if gate.reason else "\n")
    why = f"<small>{words(figures.prose(gate.reason))}</small>" if gate.reason else ""
    return (
        f'<li class="{state}{" first" if first else ""}"><b>{_SIGNS[state]}</b>'
        f"<div><b>{state}</b> {words(said)}{words(reason)}{why}</div></li>"
    )


def _size(report: Report) -> Tile | None:
    if not report.models:
        return None
    base = report.models[0]
    if len(report.models) == 1:
        return (
            "Size",
            figures.size(base.bytes),
            f"{figures.amount(base.parameters)} parameters" if base.parameters else "",
        )
    smallest = min(_contenders(report), key=lambda entry: entry.bytes)
    said = f"{_smaller(base, smallest)}, from {figures.size(base.bytes)}"
    return _titled(report, "Size", "Smallest", smallest.name), figures.size(smallest.bytes), said


def _smaller(base: ModelEntry, entry: ModelEntry) -> str:
    ratio = rows.smaller(base, entry)
    return ratio if entry.bytes > base.bytes or ratio == figures.DASH else f"{ratio} smaller"


def _quality(report: Report) -> Tile | None:
    """The evaluation's metric where there is one, else likeness to the original."""
    known = [m for m in report.measurements if m.name not in rows.NO_QUALITY]
    told = report.evaluation
    name = told.metric if told is not None and report.values(told.metric) else known[0].name if known else ""
    scores = report.values(name)
    own = [scores[entry.name] for entry in _contenders(report) if entry.name in scores]
    if not own:
        return None
    lower = told is not None and told.metric == name and not told.higher_is_better
    best = min(own, key=lambda m: m.value) if lower else max(own, key=lambda m: m.value)
    base = scores.get(report.models[0].name)
    said = []
    if base is not None and base is not best:
        drop = told.drops.get(best.model) if told is not None and told.metric == name else None
        said = [f"{_signed(best.value - base.value)} {'pt' if best.unit == '%' else ''}".strip()]
        said += [f"95 % interval {_signed(-drop[1])} to {_signed(-drop[0])}"] if drop else []
    elif (known_interval := interval(best, figures.number)) != figures.DASH:
        said = [f"95 % interval {known_interval}"]
    named = metric(name)
    title = _titled(report, named[:1].upper() + named[1:], f"Best {named}", best.model)
    measure = f" {figures.clean(best.unit)}" if best.unit else ""
    return title, f"{figures.number(best.value)}{measure}", ", ".join(said) or f"n = {best.n}"


def _contenders(report: Report) -> Sequence[ModelEntry]:
    """The results that the figures are chosen from: those that miss no limit, as long as there are any."""
    others = report.models[1:] or report.models
    missed = [gate.name for gate in report.gates if gate.passed is False]
    return [e for e in others if not any(name.startswith(f"{e.name}: ") for name in missed)] or others


def _signed(value: float) -> str:
    return f"{value + 0.0:+.2f}" if abs(value) < 100 else f"{value:+.0f}"


def _speed(report: Report) -> Tile | None:
    """The speed-up; over all points of a sweep its range; of one model alone its time of a call."""
    found = [m for m in report.measurements if m.name == "speedup"]
    if not found:
        times = list(report.values("latency_p50").values())
        if len(report.models) != 1 or not times:
            return None
        known = interval(times[0], figures.milliseconds)
        said = f"95 % interval {known}" if known != figures.DASH else "median"
        return "Time of a call", f"{figures.milliseconds(times[0].value)} ms", said
    if rows.is_sweep(report):
        low, high = (pick(found, key=lambda m: m.value) for pick in (min, max))
        points = len({m.point for m in found})
        return "Speed", f"{low.value:.2f}× to {high.value:.2f}×", f"at {points} points"
    names = {entry.name for entry in _contenders(report)}
    best = max([m for m in found if m.model in names] or found, key=lambda m: m.value)
    known = interval(best, lambda value: f"{value:.2f}")
    said = f"95 % interval {known}" if known != figures.DASH else ""
    return _titled(report, "Speed", "Fastest", best.model), f"{best.value:.2f}×", said


def _titled(report: Report, alone: str, among: str, model: str) -> str:
    """With several results each figure is the best one's, and says whose."""
    if len(report.models) < 3:
        return alone
    passing = " that passes" if len(_contenders(report)) < len(report.models) - 1 else ""
    return f"{among}{passing}: {figures.clean(model)}"


def before_after(report: Report) -> list[tuple[str, ...]]:
    """The main table, its titles first: with one result a line a figure, with several a line a model."""
    names = dict.fromkeys(m.name for m in report.measurements if m.name not in rows.NO_QUALITY)
    columns: list[tuple[str, Callable[[ModelEntry], str]]] = [("size", lambda e: figures.size(e.bytes))]
    scores = [(_column(report, name), _scores(report, name)) for name in names]
    # The evaluation's metric comes first in a report; what is only likeness to the original follows the speed.
    columns += [*scores[:1], *([] if rows.is_sweep(report) else _timed(report)), *scores[1:]]
    known = [(title, [cell(entry) for entry in report.models]) for title, cell in columns]
    if len(report.models) < 3:
        changes = _changes(report, names)
        header = ("", *(entry.name for entry in report.models), *(("change",) if changes else ()))
        return [header, *((title, *cells, *changes.get(title, ("",) if changes else ())) for title, cells in known)]
    smaller = [figures.DASH, *(rows.smaller(report.models[0], entry) for entry in report.models[1:])]
    known.insert(1, ("smaller", smaller))
    header = ("model", *(title for title, _ in known))
    return [header, *((e.name, *(cells[i] for _, cells in known)) for i, e in enumerate(report.models))]


def _column(report: Report, name: str) -> str:
    measure = next((figures.clean(m.unit) for m in report.measurements if m.name == name and m.unit), "")
    return f"{metric(name)}{f', {measure}' if measure else ''}"


def _scores(report: Report, name: str) -> Callable[[ModelEntry], str]:
    scores = report.values(name)
    return lambda entry: figures.number(scores[entry.name].value) if entry.name in scores else figures.DASH


def _timed(report: Report) -> Sequence[tuple[str, Callable[[ModelEntry], str]]]:
    """Latency and speed-up of the first run; :func:`rows.timings` has them all."""
    shown = dict(zip((entry.name for entry in report.models), rows.rows(report), strict=True))
    found: list[tuple[str, Callable[[ModelEntry], str]]] = []
    if len(report.models) > 2 and any(row.speedup != figures.DASH for row in shown.values()):
        found.append(("speed-up", lambda entry: shown[entry.name].speedup))
    if any(row.latency != figures.DASH for row in shown.values()):
        found.append(("latency p50", lambda entry: shown[entry.name].latency))
    return found


def _changes(report: Report, names: dict[str, None]) -> dict[str, tuple[str, ...]]:
    """What the one result changed, by the titles of the lines."""
    if len(report.models) != 2:
        return {}
    base, last = report.models
    row = rows.rows(report)[-1]
    out: dict[str, tuple[str, ...]] = {"size": (_smaller(base, last),)}
    for name in names:
        scores: dict[str, Measurement] = report.values(name)
        if base.name in scores and last.name in scores:
            before, after = scores[base.name].value, scores[last.name].value
            out[_column(report, name)] = (f"{after - before:+.{figures.decimals(after)}f}",)
    if row.speedup != figures.DASH:
        out["latency p50"] = (row.speedup.partition(" ")[0],)
    return out
