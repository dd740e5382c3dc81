"""A report on the terminal: the verdict first, then the figures it rests on."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compresskit.render import figures, nodes, rows, search_view, sweep
from compresskit.render.console import make_console
from compresskit.report import Report, Verdict
from compresskit.searched import Search

_COLOUR = {
    Verdict.PASS: "bold green",
    Verdict.FAIL: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.UNVERIFIED: "bold yellow",
}
_PACE = {True: "green", False: "red", None: ""}
_STATE = {"passed": "green", "failed": "bold red", "inconclusive": "yellow"}


def print_report(report: Report, console: Console | None = None, *, output: str = "", use: str = "") -> None:
    """Draw a report.

    Args:
        report: What a command found out.
        console: Where to draw; standard output by default.
        output: The file or folder that was written, if any: named in the first line and the last.
        use: The command that uses it, if there is one.
    """
    console = make_console() if console is None else console
    for part in _parts(report, output, use):
        console.print(part, overflow="fold")


def _parts(report: Report, output: str, use: str) -> list[RenderableType]:
    word = Text(rows.word(report), style=_COLOUR[report.verdict])
    parts: list[RenderableType] = [Text.assemble(word, "  ", rows.headline(report, output))]
    if note := rows.explanation(report):
        parts.append(_indented(Text(note, style="yellow")))
    if report.models:
        parts += [Text(), _models(report)]
    if report.steps:
        parts += [Text(), _steps(report)]
    if report.search is not None:
        parts += [Text(), _search(report.search), *_block(search_view.lines(report.search))]
    for timing in rows.timings(report):
        parts += [Text(), *_timings(timing)]
    if rows.is_sweep(report):
        parts += [Text(), _sweep(report)]
    for title, lines in nodes.profiles(report):
        parts += [Text(), _indented(Text(title)), _profile(lines)]
    if report.gates:
        parts += [Text(), _gates(report)]
    parts += _block([line for line in (rows.done_line(report), *rows.skipped_lines(report)) if line])
    parts += _notes(report)
    if output:
        parts += _block([f"Written to {figures.clean(output)}", *([f"Use it: {figures.clean(use)}"] if use else [])])
    return parts


def _block(lines: list[str], prefix: str = "") -> list[RenderableType]:
    """An empty line and the lines, or nothing when there are none."""
    return [Text(), *(_indented(Text(prefix + line)) for line in lines)] if lines else []


def _notes(report: Report) -> list[RenderableType]:
    """Notes; one that tells of a model slower than the original stands out."""
    if not report.notes:
        return []
    shown = (figures.prose(note) for note in report.notes)
    return [
        Text(),
        *(_indented(Text(f"note: {note}", style="red" if " SLOWER than " in note else "")) for note in shown),
    ]


def _indented(text: Text) -> RenderableType:
    """Text whose every line, wrapped ones too, starts two columns in."""
    return Padding(text, (0, 0, 0, 2), expand=False)


def _table(*header: tuple[str, bool]) -> Table:
    """A table without lines that folds what doesn't fit; each column is (title, right-aligned)."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title, right in header:
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    return table


def _models(report: Report) -> RenderableType:
    body = rows.rows(report)
    compared = len(report.models) > 1
    elsewhere = rows.is_sweep(report) or bool(rows.timings(report))
    timed = any(row.latency != figures.DASH for row in body) and not elsewhere
    columns = {
        "model": (True, False),
        "size": (True, True),
        "smaller": (compared, True),
        "quality": (any(row.quality for row in body), False),
        "latency": (timed, True),
        "speedup": (timed and compared, False),
    }
    table = _table(*((name, right) for name, (shown, right) in columns.items() if shown))
    for row in body:
        cells = (
            Text(row.model),
            Text(row.size),
            Text(row.smaller, style="red" if row.grew else ""),
            Text("\n".join(row.quality)),
            Text(row.latency),
            Text(row.speedup, style=_PACE[row.faster]),
        )
        table.add_row(*(cell for cell, (shown, _) in zip(cells, columns.values(), strict=True) if shown))
    return Padding(table, (0, 0, 0, 2), expand=False)


def _steps(report: Report) -> RenderableType:
    right = ("size", "cost")
    table = _table(*((title, title in right) for title in rows.STEP_HEADER))
    for step, cells in zip(report.steps, rows.steps(report), strict=True):
        table.add_row(*map(Text, cells), style="yellow" if step.state == "undone" else "")
    return Padding(table, (0, 0, 0, 2), expand=False)


def _search(search: Search) -> RenderableType:
    header, body = search_view.table(search)
    table = _table(*((title, index > 1) for index, title in enumerate(header)))
    for number, cells in body:
        table.add_row(*map(Text, cells), style="green" if number == search.winner else "")
    return Padding(table, (0, 0, 0, 2), expand=False)


def _timings(timing: rows.Timings) -> list[RenderableType]:
    first, *rest = timing.header
    table = _table((first, False), *((title, True) for title in rest))
    for line, faster in zip(timing.lines, timing.faster, strict=True):
        table.add_row(*(Text(cell) for cell in line[:-1]), Text(line[-1], style=_PACE[faster]))
    return [_indented(Text(timing.run)), Padding(table, (0, 0, 0, 2), expand=False)]


def _sweep(report: Report) -> RenderableType:
    header, lines = sweep.table(report)
    table = _table(*((title, index > 0) for index, title in enumerate(header)))
    for line in lines:
        table.add_row(*(Text(cell) for cell in line.cells[:-1]), Text(line.cells[-1], style=_PACE[line.faster]))
    return Padding(table, (0, 0, 0, 2), expand=False)


def _profile(lines: list[tuple[str, ...]]) -> RenderableType:
    table = _table(*((title, title in ("ms", "share")) for title in nodes.HEADER))
    for line in lines:
        table.add_row(*map(Text, line))
    return Padding(table, (0, 0, 0, 2), expand=False)


def _gates(report: Report) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, min_width=6)
    table.add_column(overflow="fold")
    for gate in report.gates:
        state = rows.gate_state(gate)
        table.add_row(Text(state, style=_STATE[state]), Text(rows.gate_text(gate)))
    return Padding(table, (0, 0, 0, 2), expand=False)
