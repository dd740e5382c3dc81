"""A report as Markdown, for a pull request or a job summary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from compresskit.errors import as_flags
from compresskit.render import figures, nodes, rows, search_view, sweep
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
    note = rows.explanation(report)
    blocks = [
        [f"### {_MARK[report.verdict]} {rows.word(report)}"],
        [escape(rows.headline(report, output))],
        [f"*{escape(note)}*"] if note else [],
        *_tables(report),
        [f"- {_bold(rows.gate_state(gate))} {escape(rows.gate_text(gate))}" for gate in report.gates],
        [f"- {escape(line)}" for line in (rows.done_line(report), *rows.skipped_lines(report)) if line],
        [f"- {escape(f'note: {as_flags(note)}')}" for note in report.notes],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _tables(report: Report) -> Iterator[list[str]]:
    """The tables, and what stands above them."""
    if report.models:
        yield _models(report)
    if report.steps:
        yield _table(rows.STEP_HEADER, rows.steps(report))
    if report.search is not None:
        header, front = search_view.table(report.search)
        yield _table(header, [cells for _, cells in front])
        yield [f"- {escape(line)}" for line in search_view.lines(report.search)]
    for timing in rows.timings(report):
        yield [escape(timing.run)]
        yield _table(timing.header, timing.lines)
    if rows.is_sweep(report):
        header, swept = sweep.table(report)
        yield _table(header, [line.cells for line in swept])
    for title, own in nodes.profiles(report):
        yield [escape(title)]
        yield _table(nodes.HEADER, own)


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
