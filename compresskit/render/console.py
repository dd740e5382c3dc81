"""The one console: plain when it is no terminal, and safe on terminals that can't show every character."""

from __future__ import annotations

import codecs
import sys
from typing import TextIO

from rich.console import Console

_PLAIN = {"→": "->", "×": "x", "–": "-", "−": "-", "…": "...", "·": "*", "≥": ">=", "≤": "<=", "≈": "~", "±": "+/-"}

_ENDLESS = 10_000
"""Columns of a log: wide enough that no row is wrapped."""
_log = {"plain": False}


def set_plain(wanted: bool) -> None:
    """Whether consoles made from now on are for logs: no colour, and a line for each row however long."""
    _log["plain"] = wanted


def is_plain() -> bool:
    """Whether output is for logs."""
    return _log["plain"]


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Stand-ins for characters that the stream's encoding lacks (a Windows code page, ASCII)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, "?") for c in text), error.end


codecs.register_error("compresskit.spell", _spell)


def make_console(stream: TextIO | None = None, *, width: int | None = None) -> Console:
    """A console on a stream.

    Colours only on a terminal and without ``NO_COLOR``; 80 columns where the width isn't known. Neither for logs
    (:func:`set_plain`). Markup, emoji codes and
    highlighting are off: text from files is text.

    Args:
        stream: Where to write; standard output by default.
        width: Columns; the terminal's by default.
    """
    stream = sys.stdout if stream is None else stream
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and not (getattr(stream, "encoding", None) or "").lower().startswith("utf"):
        reconfigure(errors="compresskit.spell")
    if is_plain():
        return Console(
            file=stream, width=width or _ENDLESS, no_color=True, force_terminal=False, markup=False, emoji=False,
            highlight=False,
        )  # fmt: skip
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)
