"""What can go wrong, and the exit code of each kind.

Every error that a user can cause is a :class:`CompressKitError`. It is printed as one line (what was
expected, what was found) and at most one more (what to do next), never as a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of the command line; nothing else is ever returned."""

    OK = 0
    GATE = 1
    USAGE = 2
    INPUT = 3
    ENVIRONMENT = 4
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


STOPS = (KeyboardInterrupt, SystemExit)
"""What Ctrl-C and SIGTERM raise."""


def stop_code(error: BaseException) -> ExitCode:
    """The exit code of a program that was stopped by one of :data:`STOPS`."""
    return ExitCode.INTERRUPTED if isinstance(error, KeyboardInterrupt) else ExitCode.TERMINATED


def printable(text: object, limit: int = 400) -> str:
    """Text from a file, made safe for a terminal.

    Args:
        text: Anything; its ``str`` is taken.
        limit: Longest result, in characters; the rest is cut with an ellipsis.

    Returns:
        One line without control characters: each is shown as a backslash escape.
    """
    begin = str(text)[: limit + 1]
    out = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in begin)
    return out if len(out) <= limit else out[: limit - 1] + "…"


_OPTION = re.compile(r"`([a-z][a-z0-9]*(?:_[a-z0-9]+)*)`")


def spelled(text: str, spell: Callable[[str], str]) -> str:
    """A message with its options as the reader types them.

    Messages, hints and descriptions name an option as a field of the library: ```max_drop```. The command line shows
    ``--max-drop`` in its place, a recipe ``max-drop``.

    Args:
        text: With fields in backticks.
        spell: Gives an option's spelling from its name with dashes: ``max-drop``.
    """
    return _OPTION.sub(lambda match: spell(match[1].replace("_", "-")), text)


def as_flags(text: str) -> str:
    """A message as the command line shows it: ```max_drop``` is ``--max-drop``."""
    return spelled(text, "--{}".format)


def listing(names: list[str], limit: int = 3) -> str:
    """The first few names and how many there are: ``'a', 'b', 'c' and 4 more``."""
    shown = ", ".join(f"'{printable(n, 80)}'" for n in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


class CompressKitError(Exception):
    """Base of every error that is the input's, the user's or the machine's doing.

    Args:
        message: What was expected and what was found; names the file, tensor, key or line.
        hint: What to do next.
        limit: Longest message, in characters.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, hint: str = "", limit: int = 400) -> None:
        super().__init__(message)
        self.message = printable(message, limit)
        self.hint = printable(hint)

    def messages(self) -> list[str]:
        """What is printed, a line each, before the hint; an error that holds several says them all."""
        return [self.message]

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(CompressKitError):
    """The command, option or library call is wrong."""

    exit_code = ExitCode.USAGE


class InputError(CompressKitError):
    """A file or folder is missing, damaged, hostile or of another kind than asked."""

    exit_code = ExitCode.INPUT


class PathError(InputError):
    """A path that was typed leads nowhere: the command line is wrong, nothing that was read."""

    exit_code = ExitCode.USAGE


class MachineError(CompressKitError):
    """The machine can't: disk full, read-only, no memory, a missing extra."""

    exit_code = ExitCode.ENVIRONMENT


class GateError(CompressKitError):
    """A quality, size, speed or parity gate was missed; no file stands under the final name."""

    exit_code = ExitCode.GATE


def missing_package(package: str) -> MachineError:
    """The error for a dependency that every install brings but the one for the edge."""
    return MachineError(f"this needs {package}, which is not installed", f"pip install {package}")


def missing_extra(package: str, extra: str) -> MachineError:
    """The error for an optional dependency that isn't installed."""
    return MachineError(f"this needs {package}, which is not installed", f"pip install 'compresskit[{extra}]'")
