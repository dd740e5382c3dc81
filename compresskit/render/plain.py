"""Whether output is for logs. Imports nothing: every command asks, and few need the library that draws."""

from __future__ import annotations

from collections.abc import MutableMapping

_SIZES = ("COLUMNS", "LINES")
_log = {"plain": False}


def set_plain(wanted: bool) -> None:
    """Whether consoles made from now on are for logs: no colour, and a line for each row however long."""
    _log["plain"] = wanted


def forget_odd_sizes(environ: MutableMapping[str, str]) -> None:
    """Take out a terminal's size that is none: rich would draw tables of no column, or fail.

    Args:
        environ: Variables of the environment, changed in place.
    """
    for name in _SIZES:
        text = environ.get(name, "1")
        if not (text.isascii() and text.isdigit() and 0 < len(text) < 6 and int(text) > 0):
            del environ[name]


def is_plain() -> bool:
    """Whether output is for logs."""
    return _log["plain"]
