"""``compresskit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

Page = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Output file; an earlier page is overwritten. (report.html next to the report)",
        rich_help_panel="Output",
        show_default=False,
    ),
]
Log = Annotated[
    str | None,
    typer.Option(
        "--log",
        metavar="mlflow|FILE.jsonl",
        help="Log the figures to MLflow, or append them to a JSON Lines file. No page is written.",
        rich_help_panel="Output",
        show_default=False,
    ),
]


def command(
    report: shared.ReportArg,
    output: Page = None,
    interactive: shared.Interactive = False,
    log: Log = None,
    quiet: shared.Quiet = False,
) -> None:
    """Write a report as one self-contained HTML page, or log its figures.

    Nothing is measured: the page shows the content of the report. The exit code is 0 for every verdict.
    """
    from compresskit.cli.console import check_html, write_out, write_page
    from compresskit.errors import printable
    from compresskit.report import PAGE, read_report

    if log is not None:
        from compresskit.cli.tracking import log as log_to

        log_to(read_report(report), log)
        return
    folder = Path() if str(report) == "-" else report if report.is_dir() else report.parent
    target = output or folder / PAGE
    check_html(target, [] if report.is_dir() else [report], option="--output", interactive=interactive)
    write_page(read_report(report), target, interactive=interactive)
    if not quiet:
        write_out(f"{printable(target)}\n")
