"""The formats there are, by the name that a card records; no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compresskit.errors import InputError
from compresskit.ops.packed.format import LINEAR, Format
from compresskit.ops.packed.k_quant import K_QUANT
from compresskit.ops.packed.nf4 import NF4
from compresskit.ops.packed.palette import PALETTES

FORMATS = {known.name: known for known in (LINEAR, K_QUANT, NF4, *PALETTES.values())}


def format_named(name: str) -> Format:
    """The format of a name that was read from a file.

    Raises:
        InputError: There is none.
    """
    if name not in FORMATS:
        raise InputError(f"'{name}' is no format of weights; known: {', '.join(FORMATS)}", "use a newer compresskit")
    return FORMATS[name]


def format_with(levels: Sequence[float]) -> Format | None:
    """The format that has just these levels, as float32."""
    wanted = np.array(levels, np.float32)
    tables = {name: known.levels for name, known in FORMATS.items() if known.levels is not None}
    return next(
        (FORMATS[n] for n, table in tables.items() if np.array_equal(np.array(table, np.float32), wanted)), None
    )
