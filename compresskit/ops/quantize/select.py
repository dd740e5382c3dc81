"""Which layers are quantized and how, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compresskit.ops.globs import check_globs, left_out, matches
from compresskit.ops.packed.format import LINEAR, Format
from compresskit.ops.packed.layout import Grid

_SIZES = (16, 32, 64, 128, 256)
ROUTES = "chooses among experts"
"""Why a router is left alone: it is small, and an error in it sends tokens to other experts."""
_GATES = ("gate", "shared_expert_gate")
_ROUTER = "router"
FLOAT = 16
"""Bits of a layer that stays in floating point, in :attr:`Selection.layer_bits`."""


@dataclass(frozen=True)
class Selection:
    """What the user asked for.

    Attributes:
        bits: 2, 3, 4 or 8; 2 to 8 where levels are stored.
        group_size: Most columns that share a scale on Linear and Embedding; 0 is the whole row.
        symmetric: No stored zero points.
        include: Globs of layer names; empty means all.
        exclude: Globs of layer names; stronger than ``include``.
        format: What codes stand for.
        layer_bits: Glob of layer names to bits and group size (None: as ``group_size``) of those layers; the last one
            that matches counts. Bits are those of ``bits``, or :data:`FLOAT`.
    """

    bits: int
    group_size: int
    symmetric: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    format: Format = LINEAR
    layer_bits: Mapping[str, tuple[int, int | None]] = field(default_factory=dict, kw_only=True)

    def check(self, names: Iterable[str]) -> None:
        """Every pattern must match a layer.

        Raises:
            UsageError: Naming the patterns that match nothing, and some layers there are.
        """
        check_globs(names, (*self.include, *self.exclude, *self.layer_bits))

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """Grouped for matrices, for convolutions (3 axes and more) as the format has it: in groups or per channel.

        Where the columns don't fill the last group, the group size that takes the fewest bytes is chosen, at least 16:
        64 columns get a group of 64 even if 128 was asked for.
        """
        if not self.format.holds(shape, self.bits):
            return self._instead.grid(shape)
        if (two_level := self.format.two_level_of(self.bits)) is not None:
            return Grid(self.bits, two_level.group_size, symmetric=True, format=self.format)
        if self.group_size == 0 or (len(shape) > 2 and not self.format.groups_convolutions):
            return Grid(self.bits, 0, self.symmetric, self.format)
        sizes = [size for size in _SIZES if size <= self.group_size]
        grids = [Grid(self.bits, size, self.symmetric, self.format) for size in sizes]
        return min(grids, key=lambda grid: (grid.nbytes(shape), -grid.group_size))

    @property
    def _instead(self) -> Selection:
        """For what has no place in a format with scales in two levels: groups that GGUF has too, Q4_0 and Q8_0."""
        return replace(self, bits=4 if self.bits <= 4 else 8, group_size=32, symmetric=True, format=LINEAR)

    def grid_for(self, name: str, shape: tuple[int, ...]) -> Grid:
        """The grid of one layer, with what ``layer_bits`` says of it."""
        bits, group = self._override(name) or (self.bits, None)
        if (bits, group) == (self.bits, None) or bits == FLOAT:
            return self.grid(shape)
        size = self.group_size if group is None else group
        return replace(self, bits=bits, group_size=size).grid(shape)

    def overrides(self, name: str) -> bool:
        """True where ``layer_bits`` says something of a layer."""
        return self._override(name) is not None

    def _override(self, name: str) -> tuple[int, int | None] | None:
        return next((self.layer_bits[p] for p in reversed(list(self.layer_bits)) if matches(name, (p,))), None)

    def reason_against(self, name: str, shape: tuple[int, ...], itemsize: int) -> str | None:
        """None when the layer is to be quantized, else why not."""
        if reason := left_out(name, self.include, self.exclude):
            return reason
        if (self._override(name) or (0,))[0] == FLOAT:
            return "left in floating point by `layer_bits`"
        if self.grid_for(name, shape).nbytes(shape) >= math.prod(shape) * itemsize:
            return f"would not get smaller ({math.prod(shape[1:])} columns)"
        return None


def routers(names: Iterable[str]) -> set[str]:
    """Of a model's layers those that choose among experts: in a ``router``, or gates beside ``experts``."""
    known = list(names)
    holders = {f".{name}".rpartition(".experts.")[0] for name in known if ".experts." in f".{name}"}
    gates = {f"{holder}.{gate}" for holder in holders for gate in _GATES}
    return {name for name in known if f".{name}" in gates or _ROUTER in name.split(".")}
