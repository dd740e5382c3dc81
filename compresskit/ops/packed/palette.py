"""Palettes: levels that were found for a weight, stored beside its codes: one table a tensor, a row or a group.

The scale of each group stays: so a table for a whole tensor fits rows of any size, and its float16 has no range to
leave.
"""

from __future__ import annotations

from typing import Literal

from compresskit.ops.packed.format import WIDTHS, Format

Scope = Literal["tensor", "row", "group"]

PALETTES: dict[Scope, Format] = {
    "tensor": Format("palette", WIDTHS, tables="tensor", groups_convolutions=False),
    "row": Format("palette-row", WIDTHS, tables="row", groups_convolutions=False),
    "group": Format("palette-group", WIDTHS, tables="group"),
}
"""By what has a table of its own."""
