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
    typer.Option("--format", help="For people, programs, or a CI service.", rich_help_panel="Output"),
]
OutputFile = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="Write it there, and the text to stdout; replaces what is there.",
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
    """Gate a build: hold a report to limits, and to the report of an earlier run.

    Nothing is measured: the figures are those of the report. Without limits its own gates decide; a limit takes the
    place of the gate of that kind. Exit code 1 when a gate is missed, or one that was asked for isn't proven.
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
