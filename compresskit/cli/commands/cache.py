"""``compresskit cache``: a word for its two commands."""

from __future__ import annotations

from typing import Annotated

import typer

What = Annotated[str, typer.Argument(metavar="ls|clear", help="One of its commands.", show_default=False)]


def command(what: What) -> None:
    """Show or clear what is kept of finished steps.

    compresskit cache ls: List the finished steps that are kept, the last used first.

    compresskit cache clear: Remove all finished steps that are kept.
    """
    from compresskit.errors import UsageError

    raise UsageError(f"there is no 'cache {what}'", "there are: compresskit cache ls, compresskit cache clear")
