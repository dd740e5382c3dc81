"""Names of layers as users give them: globs, each of which must mean something."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from compresskit.errors import UsageError, listing

EXCLUDED, NOT_INCLUDED = "excluded", "not included"


def matches(name: str, globs: Iterable[str]) -> bool:
    """True where at least one of the globs matches; case counts."""
    return any(fnmatchcase(name, glob) for glob in globs)


def left_out(name: str, include: Sequence[str], exclude: Sequence[str]) -> str:
    """Why a user's globs leave a layer as it is; empty where they don't.

    Args:
        name: Of the layer.
        include: What may be changed; empty: all.
        exclude: What may not; stronger.
    """
    if include and not matches(name, include):
        return NOT_INCLUDED
    return EXCLUDED if matches(name, exclude) else ""


def check_globs(names: Iterable[str], globs: Sequence[str], option: str = "") -> None:
    """Every glob must match a name.

    Args:
        names: Of the layers there are.
        globs: As the user gave them.
        option: Where they were given, if the error is to say so.

    Raises:
        UsageError: Naming those that match nothing, and some names there are.
    """
    known = list(names)
    idle = [glob for glob in globs if not any(matches(name, (glob,)) for name in known)]
    if idle:
        where = f"{option} " if option else ""
        raise UsageError(f"no layer matches {where}{listing(idle)}", f"layers here: {listing(known, 6)}")


def escaped(name: str) -> str:
    """The glob that matches just this name."""
    return re.sub(r"([*?[])", r"[\1]", name)
