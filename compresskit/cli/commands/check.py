"""``compresskit check``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared


class Format(str, Enum):
    """How the result is written."""

    text = "text"
    json = "json"
    junit = "junit"
    github = "github"
    markdown = "markdown"


ReportArg = Annotated[
    Path,
    typer.Argument(metavar="REPORT", help="A report.json, a bundle that holds one, or - (stdin).", show_default=False),
]
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


def command(
    report: ReportArg,
    max_drop: shared.MaxDrop = None,
    max_size: shared.MaxSize = None,
    min_speedup: shared.MinSpeedup = None,
    baseline: shared.Baseline = None,
    max_growth: shared.MaxGrowth = None,
    allow_other_machine: shared.AllowOtherMachine = False,
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
    from compresskit.recipe.limits import Limits
    from compresskit.runner.check import check, open_report

    if baseline is None and (max_growth is not None or allow_other_machine):
        option = "--max-growth" if max_growth is not None else "--allow-other-machine"
        raise UsageError(f"{option} is about a baseline", "give --baseline REPORT")
    if str(report) == str(baseline) == "-":
        raise UsageError("the report and the baseline can't both come from stdin", "give a file for one of them")
    output = None if str(output) == "-" else output
    if output is not None:
        files = [path for path in (report, baseline) if path is not None and not path.is_dir()]
        check_json(str(output), files, option="--output")
    limits = Limits(max_drop, max_size, min_speedup)
    found = check(
        open_report(report), limits, baseline=open_report(baseline) if baseline is not None else None,
        max_growth=max_growth, allow_other_machine=allow_other_machine,
    )  # fmt: skip
    show(found, format.value, output, quiet=quiet)
    raise typer.Exit(int(found.exit_code()))
