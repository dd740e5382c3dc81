"""The page: the verdict first, then what it rests on."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from compresskit.errors import as_flags, missing_package
from compresskit.render import rows, search_view
from compresskit.render.html import searched
from compresskit.render.html.compared import comparisons, latencies
from compresskit.render.html.curves import curves
from compresskit.render.html.layered import layers
from compresskit.render.html.markup import Pictures, section, table, text
from compresskit.render.html.points import sweeps
from compresskit.render.html.script import SCRIPT
from compresskit.render.html.style import CSS, NOSCRIPT
from compresskit.render.html.tradeoff import tradeoffs
from compresskit.report import Report

MARK = '<meta name="generator" content="compresskit">'
"""By this a page is known as one of ours, which may be replaced."""
_LONGEST = 20_000
_SIGNS = {"passed": "✓", "failed": "✗", "inconclusive": "?"}
_VERDICTS = {"PASS": "✓", "FAIL": "✗", "INCONCLUSIVE": "?", "UNVERIFIED": "?", "MEASURED": "•"}


def html(report: Report, *, output: str = "") -> str:
    """A report as one HTML page that loads nothing: pictures, and the tables behind them.

    Args:
        report: What a command found out.
        output: The file or folder that was written, if any.

    Raises:
        MachineError: plotly isn't installed.
    """
    library, pictures = _library(), Pictures()
    body = "".join((_top(report, output), _pictured(report, pictures), _told(report)))
    title = f"{rows.word(report)}: {rows.headline(report, output)}"
    scripts = "".join(f"<script>{code}</script>" for code in (library, SCRIPT))
    return (
        (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_policy(library, SCRIPT)}{MARK}'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><title>{text(title)}</title>'
            f"<style>{CSS}</style>{NOSCRIPT}</head><body><main>{body}</main>\n"
            f'<script type="application/json" id="figures">{pictures.json()}</script>\n{scripts}\n</body></html>\n'
        )
        .encode("utf-8", "replace")
        .decode("utf-8")
    )


def is_page(path: Path) -> bool:
    """True for a page that was made here."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return MARK.encode() in stream.read(1000)
    except OSError:
        return False


def library_size() -> int:
    """Bytes of the plotting library in each page."""
    return len(_library().encode("utf-8"))


def _library() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise missing_package("plotly") from error
    # A comment of the library names an address, and nothing else of it may end the element.
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _policy(*scripts: str) -> str:
    """Nothing is fetched, and no script runs but the page's own, known by their hashes."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(code.encode('utf-8')).digest()).decode()}'" for code in scripts
    )
    rules = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
    return f"<meta http-equiv=\"Content-Security-Policy\" content=\"{rules}; base-uri 'none'; form-action 'none'\">"


def _top(report: Report, output: str) -> str:
    word = rows.word(report)
    note = rows.explanation(report)
    tiles = []
    shown = rows.rows(report)
    if len(shown) == 2:
        last = shown[-1]
        tiles = [(last.size, f"size, from {shown[0].size} ({last.smaller} {'' if last.grew else 'smaller'})")]
        # The evaluation's metric comes first, as in the table.
        tiles += [_quality(quality) for quality in last.quality[:1]]
        tiles += [(last.speedup.split(" ")[0], f"speed-up, 95 % interval {last.speedup.partition(' ')[2] or '–'}")]
        tiles += [(last.latency, f"latency, median, from {shown[0].latency}")]
    boxes = "".join(
        f'<div class="tile"><b>{text(big)}</b><span>{text(small)}</span></div>' for big, small in tiles if big != "–"
    )
    return (
        f'<header><span class="badge {word}">{_VERDICTS[word]} {word}</span>'
        f"<h1>{text(rows.headline(report, output))}</h1>"
        f'<p class="soft"><code>{text(report.command)}</code></p>{f"<p>{text(note)}</p>" if note else ""}</header>'
        f"{f'<div class=tiles>{boxes}</div>' if boxes else ''}"
    )


def _quality(words: str) -> tuple[str, str]:
    """``accuracy 91.71 % (+0.01)`` as the figure and what it is."""
    name, _, rest = words.partition(" ")
    figure, _, change = rest.partition(" (")
    return figure, f"{name}, {change.rstrip(')')} against the original" if change else name


def _pictured(report: Report, pictures: Pictures) -> str:
    main = [
        (row.model, row.size, row.smaller, ", ".join(row.quality), row.latency, row.speedup)
        for row in rows.rows(report)
    ]
    header = ("model", "size", "smaller", "quality", "latency p50", "speedup")
    timings = "".join(
        f"<h3>{text(timing.run)}</h3>{table(rows.TIMING_HEADER, timing.lines)}" for timing in rows.timings(report)
    )
    gates = [
        (f"{_SIGNS[rows.gate_state(gate)]} {rows.gate_state(gate)}", rows.gate_text(gate)) for gate in report.gates
    ]
    swept = sweeps(report)
    scatter, spread, curved, by_layer = tradeoffs(report), latencies(report), curves(report), layers(report)
    return "".join(
        (
            section("Limits", _card(table((), gates, prose=True)) if gates else ""),
            section("Trade-off", pictures.grid(scatter, wide=True) if scatter else ""),
            section(
                "Models",
                _card(table(header, main)) if main else "",
                f'<div style="height:.9rem"></div>{pictures.grid(comparisons(report))}' if main else "",
            ),
            _searched(report, pictures),
            section("Sweep", pictures.grid(swept, wide=True) if swept else ""),
            section("Timings", _card(timings) if timings else ""),
            section("Latencies", pictures.grid(spread, wide=True) if spread else ""),
            section("Steps", _card(table(rows.STEP_HEADER, rows.steps(report))) if report.steps else ""),
            section("Training", pictures.grid(curved) if curved else ""),
            section("Layers", pictures.grid(by_layer, wide=True) if by_layer else ""),
        )
    )


def _searched(report: Report, pictures: Pictures) -> str:
    if report.search is None:
        return ""
    told = "".join(f"<p>{text(line)}</p>" for line in search_view.lines(report.search))
    whole = table(searched.HEADER, searched.lines(report.search), prose=True)
    charts = searched.searches(report.search)
    return section(
        "Search",
        f"{pictures.grid(charts, wide=True) if charts else ''}{_card(told + _folded('All candidates', whole))}",
    )


def _told(report: Report) -> str:
    """What is text: coverage, notes, history and environment."""
    coverage = report.coverage
    parts = []
    if line := rows.done_line(report):
        parts.append(
            f"<p>{text(line)}</p>{_folded('Layers changed', table(('layer', 'to'), coverage.done.items(), prose=True))}"
        )
    if coverage.skipped:
        by_reason: dict[str, list[str]] = {}
        for name, reason in coverage.skipped.items():
            by_reason.setdefault(reason, []).append(name)
        lines = [
            (
                rows.unchanged(report, names),
                as_flags(reason),
                ", ".join(names[:200]) + (f" and {len(names) - 200} more" if names[200:] else ""),
            )
            for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
        ]
        parts.append(table(("", "reason", "layers"), lines, prose=True))
    notes = "".join(f"<li>{text(as_flags(note))}</li>" for note in report.notes)
    history = "".join(_applied(number, applied) for number, applied in enumerate(report.history, 1))
    files = [(m.name, m.path, f"{m.bytes:,}", m.sha256) for m in report.models]
    machine = table((), _flat(report.environment), prose=True) if report.environment else ""
    return "".join(
        (
            section("Coverage", _card("".join(parts)) if parts else ""),
            section("Notes", _card(f"<ul>{notes}</ul>") if notes else ""),
            section("History", _card(history) if history else ""),
            section(
                "Files and environment",
                _card(table(("model", "path", "bytes", "SHA-256"), files, prose=True)) if files else "",
                f'<div style="height:.9rem"></div>{_card(_folded("Environment", machine))}' if machine else "",
            ),
        )
    )


def _first(names: list[str], limit: int = 200) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if names[limit:] else "")


def _card(inside: str) -> str:
    return f'<div class="card">{inside}</div>'


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{text(title)}</summary>{inside}</details>"


def _applied(number: int, applied: dict[str, Any]) -> str:
    """A step of the history; what is by layer is in the pictures and the coverage."""
    facts = applied.get("facts")
    kept = {k: v for k, v in facts.items() if k != "layers"} if isinstance(facts, dict) else facts
    words = json.dumps({"options": applied.get("options"), "facts": kept}, indent=1, ensure_ascii=False)
    if len(words) > _LONGEST:
        words = f"{words[:_LONGEST]}\n… all is in report.json"
    shown = "\n".join(text(line) for line in words.splitlines())
    return _folded(f"{number}. {applied.get('name')}", f"<pre>{shown}</pre>")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            out += _flat(value, f"{prefix}{name}.")
        else:
            out.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return out
