"""How ``check`` shows what it came to."""

from __future__ import annotations

import io
import os
from pathlib import Path

from compresskit.cli.console import listening, tell, write_json, write_out
from compresskit.report import Report

_SUMMARY = "GITHUB_STEP_SUMMARY"
_WIDTH = 100


def show(report: Report, kind: str, output: Path | None, *, quiet: bool) -> None:
    """Write a report.

    Args:
        report: What was judged.
        kind: ``text``, ``json``, ``junit``, ``github`` or ``markdown``; ``github`` adds to the job's summary too.
        output: Where the document goes; then standard output gets the text.
        quiet: No text; a document is still written.

    Raises:
        MachineError: The file can't be written.
    """
    with listening():
        document = _document(report, kind) if output is not None or kind != "text" else ""
        if output is not None:
            write_json(document, str(output))
        elif kind != "text":
            write_out(document)
        if (output is not None or kind == "text") and not quiet:
            from compresskit.render.terminal import print_report

            print_report(report)
    if kind == "github":
        _summarize(report)


def _document(report: Report, kind: str) -> str:
    if kind == "json":
        return report.to_json()
    if kind == "junit":
        from compresskit.render.junit import junit

        return junit(report)
    if kind == "github":
        from compresskit.render.github import github

        return github(report)
    if kind == "markdown":
        from compresskit.render.markdown import markdown

        return markdown(report)
    from compresskit.render.console import make_console
    from compresskit.render.terminal import print_report

    stream = io.StringIO()
    print_report(report, make_console(stream, width=_WIDTH))
    return stream.getvalue()


def _summarize(report: Report) -> None:
    """Add the report to the job's page. The verdict doesn't hang on that: where it can't be written, it is told."""
    target = os.environ.get(_SUMMARY)
    if not target:
        return
    from compresskit.render.markdown import markdown

    try:
        with Path(target).open("a", encoding="utf-8", errors="backslashreplace") as page:
            page.write(markdown(report))
    except OSError as error:
        tell(f"the summary of the job can't be written to {target}: {error.strerror}")
