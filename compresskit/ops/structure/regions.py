"""How many linear pieces a ReLU network has along lines between samples, and a picture of them in a plane."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import CompressKitError, printable
from compresskit.ops.calibration.activation_stream import Stop
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.structure.activations import SMOOTH, Activated, Activations
from compresskit.ops.structure.cells import Cell, Look, Pieces, box, pieces

Progress = Callable[[str, int, int], None]
LINES = 8
_WORK = 3e10
"""Multiply-accumulates that all lines may take together."""
_MOST, _LEAST = 20_000, 90
"""Points at which the network is run, a line."""
_FIRST, _FASTER = 2.0**-12, 16.0
"""Share of a line that is looked at first, and by how much the next share is longer at most."""
_ACROSS, _EACH = 12.0, 9.0
"""Pieces that a side of the picture crosses, at most; and points that the network is run at, for the square of it."""
_EXACT = 1e-6
"""How far the output in the middle of a piece may be from the mean of its ends, as a share of the output."""
_PROVEN = 16
"""Pieces of a line that this is held for."""


@dataclass(frozen=True)
class _Net:
    """A module in float64 along some directions from a sample.

    Attributes:
        module: In eval mode.
        data: How it is called.
        name: Of its input.
        origin: A sample, ``(1, …)``.
        directions: ``(dimensions, …)``.
    """

    module: nn.Module
    data: CalibrationData
    name: str
    origin: Tensor
    directions: Tensor

    def run(self, points: Tensor, look: Look) -> None:
        """As :data:`~compresskit.ops.structure.cells.Run`."""

        def note(found: Activated) -> None:
            bent = [found.given.flatten(1)]
            if found.function == "relu6":
                bent.append(6.0 - bent[0])
            if not look(torch.cat(bent, 1)):
                raise Stop

        try:
            with Activations(self.module, note):
                self.output(points)
        except Stop:
            pass

    def output(self, points: Tensor) -> Tensor:
        """The first output, ``(points, values)``."""
        x = self.origin + torch.tensordot(points, self.directions, 1)
        out = self.data.forward(self.module, {self.name: x})
        return next(tensors_in(out)).flatten(1)


@torch.no_grad()
def regions(module: nn.Module, data: CalibrationData, macs: int, seed: int, progress: Progress) -> dict[str, Any]:
    """The linear pieces along lines between samples, and in a plane through three of them.

    Args:
        module: In eval mode; not changed.
        data: With batches of one floating-point input.
        macs: Multiply-accumulates of a sample, which decide how much of each line is looked at.
        seed: Of the place of the stretch on each line.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        ``lines`` (``share`` of the line that was looked at, at a place drawn at random, and ``regions`` there),
        ``regions`` (a whole line's: mean, and where lines were looked at in part the mean of what follows from the
        parts), ``low``, ``high`` (95 % of the mean, by the spread of lines), ``exact`` (whole lines were counted),
        ``slice``; or ``unknown``: why not.
    """
    why = _why_not(module, data)
    if why:
        return {"unknown": why}
    try:
        twin = copy.deepcopy(module).double()
        return _counted(twin, data, macs, random.Random(seed), progress)
    except CompressKitError as error:
        return {"unknown": f"the model does not run in float64: {printable(error.message, 200)}"}


def _why_not(module: nn.Module, data: CalibrationData) -> str:
    """Why pieces can't be counted, as far as it is known before."""
    given = data.batches[0]
    if len(given) != 1 or not next(iter(given.values())).is_floating_point():
        return "lines are drawn between inputs that are one floating-point tensor"
    seen: set[str] = set()
    with Activations(module, lambda found: seen.add(found.function)):
        data.run(module)
    if smooth := sorted(seen.intersection((*SMOOTH, "hardtanh", "prelu"))):
        return f"the model has activations without linear pieces that are counted here ({', '.join(smooth)})"
    return "" if seen else "the model has no ReLU"


def _counted(
    module: nn.Module, data: CalibrationData, macs: int, drawn: random.Random, progress: Progress
) -> dict[str, Any]:
    (name,) = data.batches[0]
    samples = torch.cat([batch[name][: 2 * LINES].double() for batch in data.batches[: 2 * LINES]])[: 2 * LINES]
    if len(samples) < 3:
        return {"unknown": "lines need three samples or more"}
    most = int(min(_MOST, max(_LEAST, _WORK / LINES / max(1, macs))))
    lines = []
    for done, start in enumerate(range(0, len(samples) - 1, 2), 1):
        net = _Net(module, data, name, samples[start : start + 1], samples[start + 1 : start + 2] - samples[start])
        share, found = _stretch(net, most, drawn)
        if (off := _off(net, found.cells)) > _EXACT:
            return {"unknown": f"the model is bent elsewhere than at its ReLUs (off by {off:.1g} in a piece)"}
        lines.append({"share": share, "regions": len(found.cells)})
        progress("count regions", done, len(samples) // 2)
    rates = [1 + (line["regions"] - 1) / line["share"] for line in lines]
    mean = math.fsum(rates) / len(rates)
    error = math.sqrt(math.fsum((r - mean) ** 2 for r in rates) / max(1, len(rates) - 1) / len(rates))
    return {
        "lines": lines,
        "regions": round(mean, 1),
        "low": round(max(1.0, mean - 1.96 * error), 1),
        "high": round(mean + 1.96 * error, 1),
        "exact": all(line["share"] == 1 for line in lines),
        "slice": _slice(module, data, name, samples[:3], mean, most),
    }


def _stretch(net: _Net, most: int, drawn: random.Random) -> tuple[float, Pieces]:
    """A line's stretch at a random place, as long as may be, and its pieces."""
    place, share = drawn.random(), _FIRST
    best: tuple[float, Pieces] | None = None
    left = most
    while True:
        low = place * (1 - share)
        found = pieces(box([low], [low + share]), net.run, left)
        left -= found.calls
        if not found.complete and best is not None:
            return best
        if not found.complete:
            share, left = share / _FASTER, most
            continue
        best = share, found
        expected = found.calls / share  # points that a whole line takes
        longer = min(_FASTER, 0.5 * left / max(1.0, expected * share))
        if share == 1 or longer <= 1.5:
            return best
        share = min(1.0, share * longer)


def _off(net: _Net, cells: Sequence[Cell]) -> float:
    """How far the network is from linear within some of the pieces, as a share of its output."""
    some = cells[:: max(1, len(cells) // _PROVEN)][:_PROVEN]
    worst = 0.0
    for cell in some:
        corners = torch.stack([v.place for v in cell.corners])
        out = net.output(torch.cat([corners, cell.middle[None]]))
        away = (out[:-1].mean(0) - out[-1]).norm() / out[-1].norm().clamp_min(1e-12)
        worst = max(worst, float(away))
    return worst


def _slice(
    module: nn.Module, data: CalibrationData, name: str, three: Tensor, per_line: float, most: int
) -> dict[str, Any] | None:
    """The pieces in a square of the plane through three samples, around their mean; None where there are too many."""
    net = _Net(module, data, name, three[:1], three[1:] - three[:1])
    across = min(_ACROSS, math.sqrt(2 * most / _EACH))
    side = min(1.0, across / max(1.0, per_line - 1))
    for _ in range(6):
        low = 1 / 3 - side / 2
        found = pieces(box([low, low], [low + side, low + side]), net.run, 2 * most)
        if found.complete:
            middles = torch.stack([cell.middle for cell in found.cells])
            out = torch.cat([net.output(part) for part in torch.split(middles, 64)])
            classes = out.argmax(1).tolist() if data.scores else [0] * len(out)
            return {
                "side": side,
                "regions": len(found.cells),
                "cells": [_polygon(cell, low, side) for cell in found.cells],
                "classes": classes,
            }
        side /= 2
    return None


def _polygon(cell: Cell, low: float, side: float) -> list[list[float]]:
    """The corners in order around the middle, in shares of the square."""
    x, y = cell.middle.tolist()
    around = sorted((v.place.tolist() for v in cell.corners), key=partial(_angle, x, y))
    return [[round((a - low) / side, 4), round((b - low) / side, 4)] for a, b in around]


def _angle(x: float, y: float, place: list[float]) -> float:
    return math.atan2(place[1] - y, place[0] - x)
