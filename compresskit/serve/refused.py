"""The one exception of the server's own."""

from __future__ import annotations

from compresskit.errors import printable


class Refused(Exception):
    """A request that can't be answered: its HTTP status, and one line that says why.

    Attributes:
        status: Of HTTP.
        message: The line.
        about: The parameter that is wrong, where it is one.
        code: A word for programs, where the protocol has one.
    """

    def __init__(self, status: int, message: str, *, about: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.about, self.code = status, about, code
        self.message = printable(message)
