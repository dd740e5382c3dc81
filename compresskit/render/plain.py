"""Whether output is for logs. Imports nothing: every command asks, and few need the library that draws."""

from __future__ import annotations

_log = {"plain": False}


def set_plain(wanted: bool) -> None:
    """Whether consoles made from now on are for logs: no colour, and a line for each row however long."""
    _log["plain"] = wanted


def is_plain() -> bool:
    """Whether output is for logs."""
    return _log["plain"]
