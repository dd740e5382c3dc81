"""``compresskit check``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Bounds, Earlier, grouped


class Format(str, Enum):
    """How the result is written."""

    text = "text"
    json = "json"
    junit = "junit"
    github = "github"
    markdown = "markdown"


FormatName = Annotated[
    Format,
    typer.Option("--format", help="Output format.", rich_help_panel="Output"),
]
OutputFile = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write the output to FILE and the text to stdout. Overwrites FILE.",
        rich_help_panel="Output",
        show_default=False,
    ),
]


@grouped
def command(
    report: shared.ReportArg,
    bounds: Bounds,
    earlier: Earlier,
    format: FormatName = Format.text,
    output: OutputFile = None,
    quiet: shared.Quiet = False,
) -> None:
    """Check a report against limits and against an earlier report.

    Nothing is measured: the figures are those of the report. Without limits, the gates of the report decide. A limit
    replaces the gate of its kind. Exit code 1: a gate failed, or a limit that you gave is inconclusive.
    """
    from compresskit.cli.checking import show
    from compresskit.cli.console import check_json
    from compresskit.errors import UsageError
    from compresskit.runner.check import check, open_report

    earlier.check()
    if str(report) == str(earlier.baseline) == "-":
        raise UsageError("the report and the baseline can't both come from stdin", "give a file for one of them")
    output = None if str(output) == "-" else output
    if output is not None:
        files = [path for path in (report, earlier.baseline) if path is not None and not path.is_dir()]
        check_json(str(output), files, option="--output")
    found = check(
        open_report(report), bounds.limits(), baseline=earlier.open(), max_growth=earlier.max_growth,
        allow_other_machine=earlier.allow_other_machine,
    )  # fmt: skip
    show(found, format.value, output, quiet=quiet)
    raise typer.Exit(int(found.exit_code()))
