"""The one console: plain when it is no terminal, and safe on terminals that can't show every character."""

from __future__ import annotations

import codecs
import os
import sys
from typing import Any, TextIO

from rich.console import Console

from compresskit.render.plain import forget_odd_sizes, is_plain

_PLAIN = {"→": "->", "×": "x", "–": "-", "−": "-", "…": "...", "·": "*", "≥": ">=", "≤": "<=", "≈": "~", "±": "+/-"}
_ENDLESS = 10_000
"""Columns of a log: wide enough that no row is wrapped."""


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Stand-ins for characters that the stream's encoding lacks (a Windows code page, ASCII)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, "?") for c in text), error.end


codecs.register_error("compresskit.spell", _spell)


def make_console(stream: TextIO | None = None, *, width: int | None = None) -> Console:
    """A console on a stream.

    Colours only on a terminal and without ``NO_COLOR``; 80 columns where the width is not known. Neither for logs
    (:mod:`compresskit.render.plain`). Markup, emoji codes and highlighting are off: text from files is text.

    Args:
        stream: Where to write; standard output by default.
        width: Columns; the terminal's by default.
    """
    stream = sys.stdout if stream is None else stream
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None and not (getattr(stream, "encoding", None) or "").lower().startswith("utf"):
        reconfigure(errors="compresskit.spell")
    log: dict[str, Any] = {"no_color": True, "force_terminal": False} if is_plain() else {}
    environ = dict(os.environ)
    forget_odd_sizes(environ)
    width = _ENDLESS if is_plain() and width is None else width
    return Console(file=stream, width=width, _environ=environ, markup=False, emoji=False, highlight=False, **log)
