"""A report as Markdown, for a pull request or a job summary."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compresskit.errors import as_flags
from compresskit.render import figures, nodes, rows, sweep
from compresskit.report import Report, Verdict

_MARK = {Verdict.PASS: "✅", Verdict.FAIL: "❌", Verdict.INCONCLUSIVE: "⚠️", Verdict.UNVERIFIED: "⚠️"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, HTML, link, mention or issue reference takes effect."""
    text = _SPECIAL.sub(r"\\\1", figures.clean(text).replace("&", "&amp;"))
    return text.replace("@", "&#64;").replace("://", ":\\//").replace("www.", "www\\.")


def markdown(report: Report, *, output: str = "") -> str:
    """The report as GitHub-flavoured Markdown, ending in a line break.

    Args:
        report: What a command found out.
        output: The file or folder that was written, if any.
    """
    lines = [f"### {_MARK[report.verdict]} {rows.word(report)}", "", escape(rows.headline(report, output))]
    if note := rows.explanation(report):
        lines += ["", f"*{escape(note)}*"]
    if report.models:
        lines += ["", *_models(report)]
    if report.steps:
        lines += ["", *_table(rows.STEP_HEADER, rows.steps(report))]
    for timing in rows.timings(report):
        lines += ["", escape(timing.run), "", *_table(rows.TIMING_HEADER, timing.lines)]
    if rows.is_sweep(report):
        header, swept = sweep.table(report)
        lines += ["", *_table(header, [line.cells for line in swept])]
    for title, own in nodes.profiles(report):
        lines += ["", escape(title), "", *_table(nodes.HEADER, own)]
    if report.gates:
        gates = [(rows.gate_state(gate), rows.gate_text(gate)) for gate in report.gates]
        lines += ["", *(f"- {_bold(state)} {escape(text)}" for state, text in gates)]
    coverage = [line for line in (rows.done_line(report), *rows.skipped_lines(report)) if line]
    for block in (coverage, [f"note: {as_flags(note)}" for note in report.notes]):
        if block:
            lines += ["", *(f"- {escape(line)}" for line in block)]
    return "\n".join(lines) + "\n"


def _bold(state: str) -> str:
    return state if state == "passed" else f"**{state}**"


def _models(report: Report) -> list[str]:
    header = ("model", "size", "smaller", "quality", "latency p50", "speedup")
    body = [
        (row.model, row.size, row.smaller, ", ".join(row.quality), row.latency, row.speedup)
        for row in rows.rows(report)
    ]
    return _table(header, body)


def _table(header: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> list[str]:
    """A table, all columns but the first aligned right."""
    rule = ("---", *("---:" for _ in header[1:]))
    return [f"| {' | '.join(line)} |" for line in (header, rule, *(tuple(map(escape, cells)) for cells in body))]
