"""What a command shows: progress on stderr, results on stdout."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from compresskit.checkpoint.atomic import refuse_same, writing
from compresskit.errors import CompressKitError, UsageError, as_flags, missing_package, printable
from compresskit.render.plain import is_plain
from compresskit.report import Report
from compresskit.stage import Progress, silent

_DELAY = 2.0
_EVERY = 30.0
"""Seconds between two lines of progress in a log."""


class Bar:
    """A progress bar with the time left, which appears once the work has taken two seconds.

    What follows a colon in the name of the work may change as it goes on: ``training: epoch 2 of 5, loss 0.41``.
    """

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

            # The stream as it is now: exports silence sys.stderr while they run.
            self._bar = Rich(console=Console(file=sys.stderr), transient=True)
            self._bar.start()
        name = what.partition(": ")[0]
        if name != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._what, self._task = name, self._bar.add_task(what, total=None)
        self._bar.update(self._task, description=what, completed=done, total=total or None)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()


class Log:
    """Progress for a log: a line when work of another kind has gone on for two seconds, then one each half minute."""

    def __init__(self) -> None:
        self._name = ""
        self._start = self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """As :meth:`Bar.__call__`."""
        now = time.monotonic()
        if (name := what.partition(": ")[0]) != self._name:
            self._name, self._start, self._last = name, now, now + _DELAY - _EVERY
        if now - self._last >= _EVERY:
            self._last = now
            tell(f"{what}, {done}{f' of {total}' if total else ''}, {now - self._start:.0f} s")


@contextmanager
def progressing(quiet: bool) -> Iterator[Progress]:
    """A progress callback: a bar on a terminal, lines with ``--plain``, silence elsewhere and with ``--quiet``.

    What the user's code prints in the meantime goes to stderr: stdout is the result's.
    """
    with redirect_stdout(sys.stderr):
        if is_plain() and not quiet:
            yield Log()
            return
        if quiet or not sys.stderr.isatty():
            yield silent
            return
        bar = Bar()
        try:
            yield bar
        finally:
            bar.close()


def tell(text: str) -> None:
    """A line on stderr, right away."""
    print(printable(as_flags(text)), file=sys.stderr, flush=True)


def check_json(
    target: str | None,
    inputs: Iterable[Path | str | None] = (),
    output: Path | None = None,
    option: str = "--json",
) -> None:
    """Refuse a file for a document that can't be written or would hurt something, before the work is done.

    Args:
        target: As typed; None and ``-`` are fine.
        inputs: What the command reads: nothing of it is replaced, and a folder of it stays as it is.
        output: What the command writes.
        option: What the file was given to.

    Raises:
        UsageError: Its folder doesn't exist, it is a folder, or it is in an input or the output.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{option} {target}: expected a file in a folder that exists")
    try:
        for taken in inputs_of(inputs):
            refuse_same(taken, path)
    except UsageError as error:
        raise UsageError(f"{option} {target}: {error.message}", "give another file") from error
    if output is not None and output.resolve() in (path.resolve(), *path.resolve().parents):
        raise UsageError(f"{option} {target} is in the output {output}", "a report is always written there")


def check_html(
    target: Path | None,
    inputs: Iterable[Path | str | None] = (),
    output: Path | None = None,
    option: str = "--html",
    *,
    interactive: bool = False,
    beside: bool = False,
) -> None:
    """Refuse a page that can't be drawn or written, or that would take the place of something else than a page.

    Args:
        target: As typed, if it was.
        inputs: As :func:`check_json`.
        output: As :func:`check_json`.
        option: What the file was given to.
        interactive: It is to have plotly's pictures.
        beside: A page is written beside the report too.

    Raises:
        UsageError: As :func:`check_json`, another file is there, or no page is written that could be interactive.
        MachineError: It is to be interactive, and plotly isn't installed.
    """
    if interactive and target is None and not beside:
        raise UsageError("--interactive is about a page, and none is written", f"give {option} FILE")
    if interactive and find_spec("plotly") is None:
        raise missing_package("plotly")
    if target is None:
        return
    if str(target) == "-":
        raise UsageError(f"{option} -: a page goes to a file", "give its name")
    check_json(str(target), inputs, output, option=option)
    if target.exists():
        from compresskit.render.html.page import is_page

        if not is_page(target):
            raise UsageError(f"{option} {target} exists already, and is not a page of compresskit", "give another file")


def drawing(*, interactive: bool) -> Callable[[Report], str]:
    """What draws a report as a page."""
    from compresskit.render.html import html

    return partial(html, interactive=interactive)


def write_page(report: Report, target: Path | None, output: str = "", *, interactive: bool = False) -> None:
    """Put a page where ``--html`` says, if it was given."""
    if target is None:
        return
    from compresskit.checkpoint.atomic import write_file
    from compresskit.render.html import html

    text = html(report, output=output, interactive=interactive)
    write_file(target, lambda path: path.write_bytes(text.encode("utf-8")), force=True)


def write_structure(found: dict[str, Any] | None, target: Path | None, *, title: str, words: Sequence[str]) -> None:
    """Put the page of what a model does on samples where ``--html`` says, if it was given.

    Args:
        found: The structure, as ``inspect --structure --json`` has it.
        target: As typed, if it was.
        title: The model.
        words: MODEL, what tells its architecture, and the samples, as typed.
    """
    if target is None or found is None:
        return
    from compresskit.checkpoint.atomic import write_file
    from compresskit.render.html.structure import structure_page

    text = structure_page(found, title=title, words=words)
    write_file(target, lambda path: path.write_bytes(text.encode("utf-8")), force=True)


def check_output(output: Path, inputs: Iterable[Path | str | None], *, force: bool) -> None:
    """Refuse an output that is there already, or that is, holds or lies in something that the command reads.

    Raises:
        UsageError: It does.
        MachineError: The system can't tell.
    """
    for taken in inputs_of(inputs):
        refuse_same(taken, output)
    with writing(output):
        there = output.exists()
    if there and not force:
        raise UsageError(f"{output} exists already", "choose another --output, or --force to replace it")


def inputs_of(words: Iterable[Path | str | None]) -> list[Path]:
    """The paths among what was typed for MODEL, --data, --arch and the like: of ``FILE.py:NAME`` the file."""
    found = [Path(word.rpartition(":")[0]) if _is_reference(word) else Path(word) for word in words if word]
    return [path for path in found if os.path.lexists(path)]


def _is_reference(word: Path | str) -> TypeGuard[str]:
    return isinstance(word, str) and word.rpartition(":")[0].endswith(".py")


def broken_pipe(error: BaseException | None) -> bool:
    """True when the reader of stdout went away; typer and rich turn that into an exit with code 1."""
    if isinstance(error, SystemExit):
        error = error.__context__
    return isinstance(error, BrokenPipeError)


@contextmanager
def listening() -> Iterator[None]:
    """Within it a reader that went away (``| head``) is no error: the exit code still tells the verdict."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not broken_pipe(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_out(text: str) -> None:
    """Write to stdout, in UTF-8 whatever the terminal's encoding: documents are for programs and web pages."""
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    stream.write(text.encode("utf-8", "backslashreplace"))


def write_json(text: str, target: str | None) -> None:
    """Put a document where ``--json`` says, if it was given."""
    if target == "-":
        write_out(text)
    elif target is not None:
        from compresskit.checkpoint.atomic import write_file

        write_file(Path(target), lambda path: path.write_bytes(text.encode("utf-8", "backslashreplace")), force=True)


def using(output: str) -> str:
    """The command that uses what was written; empty where that is no bundle, or one that answers nobody."""
    import shlex

    from compresskit.checkpoint.bundle import is_bundle, read_card
    from compresskit.runner.run_lines import SAMPLES, kind_of_samples

    if not output or not is_bundle(output):
        return ""
    kind = kind_of_samples(Path(output), read_card(output, verify=False))
    return "" if kind is None else shlex.join(["compresskit", "predict", output, SAMPLES[kind]])


def finish(
    report: Report, *, json: str | None, quiet: bool, markdown: bool = False, html: Path | None = None,
    interactive: bool = False, output: str = "",
) -> int:  # fmt: skip
    """Show a report, and log it where the environment says; returns the exit code that follows from it."""
    with listening():
        write_json(report.to_json(), json)
        write_page(report, html, output, interactive=interactive)
        if json != "-" and not quiet:
            if markdown:
                from compresskit.render.markdown import markdown as as_markdown

                write_out(as_markdown(report, output=output).rstrip("\n") + "\n")
            else:
                from compresskit.render.terminal import print_report

                print_report(report, output=output, use=using(output))
    if where := os.environ.get("COMPRESSKIT_LOG"):
        from compresskit.cli.tracking import log

        try:
            log(report, where)
        except CompressKitError as error:  # what was measured isn't lost for that
            tell(f"the report was not logged to {where}: {error.message}")
    return int(report.exit_code())
