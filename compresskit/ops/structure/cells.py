"""The linear pieces of a ReLU network in a line or a plane of its inputs, exactly.

A cell is a convex polytope by its vertices. The network is run at the vertices; the first layer with a unit that is on
at one vertex and off at another one is bent inside, along a hyperplane that the values at the vertices tell, since all
before it is linear there. The cell is cut by all such units of that layer, and its parts are looked at again. Cells
that no layer cuts are the linear pieces. After Hanin and Rolnick, "Complexity of Linear Regions in Deep Networks"
(2019), who count along lines; edges are found as in the double description method.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_ZERO = 1e-10
"""Share of a layer's mean magnitude below which a value is on the hyperplane."""
_TOGETHER = 128
"""Vertices in a call."""
Look = Callable[[Tensor], bool]
"""Is given values ``(points, units)`` float64 whose signs tell where a layer is bent; False: the run may end."""
Run = Callable[[Tensor, Look], None]
"""Runs a network at points ``(points, dimensions)`` and shows what each of its layers is given, in order."""


@dataclass(frozen=True, eq=False)
class Vertex:
    """A corner: its place ``(dimensions,)`` in float64, and the facets that it lies on."""

    place: Tensor
    facets: frozenset[int]


@dataclass(frozen=True)
class Cell:
    """A convex polytope by its corners."""

    corners: list[Vertex]

    @property
    def middle(self) -> Tensor:
        """The mean of the corners, ``(dimensions,)``."""
        return torch.stack([v.place for v in self.corners]).mean(0)


@dataclass
class Pieces:
    """What a search came to.

    Attributes:
        cells: The linear pieces.
        complete: False where it was given up: there are more than these.
        calls: Points at which the network was run.
    """

    cells: list[Cell] = field(default_factory=list)
    complete: bool = True
    calls: int = 0


def box(low: Sequence[float], high: Sequence[float]) -> Cell:
    """A box between two corners: a stretch of a line in one dimension, a rectangle in two."""
    sides = [((2 * axis, a), (2 * axis + 1, b)) for axis, (a, b) in enumerate(zip(low, high, strict=True))]
    return Cell(
        [
            Vertex(torch.tensor([at for _, at in corner], dtype=torch.float64), frozenset(n for n, _ in corner))
            for corner in itertools.product(*sides)
        ]
    )


def pieces(start: Cell, run: Run, most: int) -> Pieces:
    """Cut a cell into the pieces in which a network is linear.

    Args:
        start: Where to look.
        run: Runs the network.
        most: Points at which it may be run; the search is given up there.
    """
    found = Pieces()
    number = itertools.count(len(start.corners[0].facets) * 2)
    waiting = [start]
    while waiting:
        some = [waiting.pop()]
        while waiting and sum(len(cell.corners) for cell in some) < _TOGETHER:
            some.append(waiting.pop())
        corners = list(dict.fromkeys(v for cell in some for v in cell.corners))
        found.calls += len(corners)
        if found.calls > most:
            found.complete = False
            return found
        rows = {v: row for row, v in enumerate(corners)}
        at = {n: torch.tensor([rows[v] for v in cell.corners]) for n, cell in enumerate(some)}
        cuts: dict[int, Tensor] = {}

        def look(z: Tensor, at: dict[int, Tensor] = at, cuts: dict[int, Tensor] = cuts) -> bool:
            for n in [n for n in at if n not in cuts]:
                if (cut := _cutting(z, at[n])).shape[1]:
                    cuts[n] = cut
            return len(cuts) < len(at)

        run(torch.stack([v.place for v in corners]), look)
        found.cells += [cell for n, cell in enumerate(some) if n not in cuts]
        waiting += [part for n, cut in cuts.items() for part in _cut(some[n], cut, number)]
    return found


def _cutting(z: Tensor, at: Tensor) -> Tensor:
    """The values at a cell's corners of the units that are bent in it, ``(corners, units)``; what is about 0 is 0."""
    own = z[at]
    own = own.masked_fill(own.abs() <= _ZERO * z.abs().mean(), 0.0)
    return own[:, (own > 0).any(0) & (own < 0).any(0)]


def _cut(cell: Cell, values: Tensor, number: itertools.count[int]) -> list[Cell]:
    """The parts of a cell between the hyperplanes on which units are 0."""
    parts = [(cell, values)]
    for unit in range(values.shape[1]):
        facet = next(number)
        parts = [half for part in parts for half in _halves(*part, unit, facet)]
    return [part for part, _ in parts]


def _halves(cell: Cell, values: Tensor, unit: int, facet: int) -> list[tuple[Cell, Tensor]]:
    """Both sides of a hyperplane; the cell itself where it lies on one."""
    own = values[:, unit]
    own = own.masked_fill(own.abs() <= _ZERO * own.abs().max(), 0.0)
    above, below = (own > 0).nonzero().flatten().tolist(), (own < 0).nonzero().flatten().tolist()
    if not above or not below:
        return [(cell, values)]
    least = len(cell.corners[0].place) - 1
    places, rows = list[Vertex](), list[Tensor]()
    for a, b in itertools.product(above, below):
        one, two = cell.corners[a], cell.corners[b]
        common = one.facets & two.facets
        if len(common) < least:
            continue  # no edge
        share = own[a] / (own[a] - own[b])
        places.append(Vertex(one.place + share * (two.place - one.place), common | {facet}))
        row = values[a] + share * (values[b] - values[a])
        row[unit] = 0.0
        rows.append(row)
    on = [Vertex(cell.corners[i].place, cell.corners[i].facets | {facet}) for i in range(len(own)) if own[i] == 0]
    middle = [*places, *on]
    level = [*rows, *(values[i] for i in range(len(own)) if own[i] == 0)]
    return [
        (Cell([*(cell.corners[i] for i in side), *middle]), torch.stack([*(values[i] for i in side), *level]))
        for side in (above, below)
    ]
