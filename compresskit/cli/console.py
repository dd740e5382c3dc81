"""What a command shows: progress on stderr, results on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compresskit.errors import UsageError
from compresskit.report import Report
from compresskit.stage import Progress, silent

_DELAY = 2.0


class Bar:
    """A progress bar that appears once the work has taken two seconds."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report ``done`` of ``total`` steps of ``what``; a total of 0 is unknown."""
        if time.monotonic() - self._start < _DELAY:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress as Rich

            self._bar = Rich(console=Console(stderr=True), transient=True)
            self._bar.start()
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._what, self._task = what, self._bar.add_task(what, total=None)
        self._bar.update(self._task, completed=done, total=total or None)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progressing(quiet: bool) -> Iterator[Progress]:
    """A progress callback: a bar on a terminal, silence elsewhere and with ``--quiet``."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    bar = Bar()
    try:
        yield bar
    finally:
        bar.close()


def check_json(target: str | None) -> None:
    """Refuse a ``--json`` file that can't be written, before the work is done.

    Raises:
        UsageError: Its folder doesn't exist, or it is a folder.
    """
    if target not in (None, "-") and target is not None:
        path = Path(target)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UsageError(f"--json {target}: expected a file in a folder that exists")


def write_json(text: str, target: str | None) -> None:
    """Put a document where ``--json`` says, if it was given."""
    if target == "-":
        sys.stdout.write(text)
    elif target is not None:
        from compresskit.checkpoint.atomic import write_file

        write_file(Path(target), lambda path: path.write_text(text, encoding="utf-8"), force=True)


def finish(report: Report, *, json: str | None, quiet: bool, markdown: bool = False, output: str = "") -> int:
    """Show a report; returns the exit code that follows from it."""
    write_json(report.to_json(), json)
    if json != "-" and not quiet:
        if markdown:
            from compresskit.render.markdown import markdown as as_markdown

            sys.stdout.write(as_markdown(report, output=output).rstrip("\n") + "\n")
        else:
            from compresskit.render.terminal import print_report

            print_report(report, output=output)
    return int(report.exit_code())
