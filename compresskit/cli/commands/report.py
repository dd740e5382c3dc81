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
        help="File to write; replaces an earlier page. (report.html beside the report)",
        rich_help_panel="Output",
        show_default=False,
    ),
]


def command(
    report: shared.ReportArg, output: Page = None, interactive: shared.Interactive = False, quiet: shared.Quiet = False
) -> None:
    """Draw a report as one HTML page with pictures, which needs no network.

    Nothing is measured: all that the page shows is in the report. The exit code is 0 whatever the verdict.
    """
    from compresskit.cli.console import check_html, write_out, write_page
    from compresskit.errors import printable
    from compresskit.report import PAGE, read_report

    folder = Path() if str(report) == "-" else report if report.is_dir() else report.parent
    target = output or folder / PAGE
    check_html(target, [] if report.is_dir() else [report], option="--output", interactive=interactive)
    write_page(read_report(report), target, interactive=interactive)
    if not quiet:
        write_out(f"{printable(target)}\n")
