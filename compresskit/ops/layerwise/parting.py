"""How far the layers of two models are apart, and the first one where they part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from compresskit.ops.calibration.activation_stream import Batch
from compresskit.ops.layerwise.side import OUTPUT, Layer, Side

Progress = Callable[[str, int, int], None]
FLOOR = 1e-3
"""Relative error below which two layers are taken to agree."""
RISE = 4.0
"""Times the largest error before it from which on an error is a jump."""
_NOISE = 1e-6
"""What float32 itself makes of another order of sums."""


@dataclass
class _Pair:
    """A layer of both: the value of each, and sums over what it gives."""

    one: str
    two: str
    away: float = 0.0
    size: float = 0.0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.away += float(np.square(a.astype(np.float64) - b).sum())
        self.size += float(np.square(a.astype(np.float64)).sum())

    @property
    def error(self) -> float:
        """Norm of the difference over that of the first model's values."""
        return float(np.sqrt(self.away / self.size)) if self.size else float(self.away > 0)


def parting(one: Side, two: Side, batches: Sequence[Batch], progress: Progress) -> dict[str, Any]:
    """Compare what the layers of two models give for the same inputs.

    Args:
        one: The model to compare with.
        two: The other one.
        batches: Inputs.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        ``layers``, in the order of the first model: ``name``, ``type`` and ``other`` (of the layer in both), ``error``
        (norm of the difference over that of the first model's values) and ``jump`` (the error is 0.001 or more, and
        four times the largest one before it); ``first``, the name of the first jump or None; ``output``, the error of
        the model's output; and the names of layers that are only in ``one`` or in ``two``, or whose ``shapes`` differ.
    """
    pairs: dict[str, _Pair] = {}
    other_shape: list[str] = []
    end = _Pair(OUTPUT, OUTPUT)
    shared = [name for name in one.layers if name in two.layers]
    for done, batch in enumerate(batches, 1):
        a, b = one.run(batch), two.run(batch)
        if done == 1:
            found = {name: _joined(one.layers[name], two.layers[name], a, b) for name in shared}
            pairs = {name: pair for name, pair in found.items() if pair is not None}
            other_shape = [name for name, pair in found.items() if pair is None]
        for pair in pairs.values():
            pair.add(a[pair.one], b[pair.two])
        if a[OUTPUT].shape == b[OUTPUT].shape:
            end.add(a[OUTPUT], b[OUTPUT])
        progress("compare layers", done, len(batches))
    rows = _rows(one, two, pairs)
    return {
        "layers": rows,
        "first": next((row["name"] for row in rows if row["jump"]), None),
        "output": _short(end.error) if end.size else None,
        "one": _alone(one, two, {pair.one for pair in pairs.values()}),
        "two": _alone(two, one, {pair.two for pair in pairs.values()}),
        "shapes": other_shape,
    }


def _joined(one: Layer, two: Layer, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> _Pair | None:
    """The values that are the layer's output in both: of those of the same shape the nearest to each other."""
    best: tuple[float, _Pair] | None = None
    for x, y in product(one.values, two.values):
        if x not in a or y not in b or a[x].shape != b[y].shape or b[y].dtype.kind != "f":
            continue
        trial = _Pair(x, y)
        trial.add(a[x], b[y])
        if best is None or trial.error < best[0]:
            best = trial.error, _Pair(x, y)
    return None if best is None else best[1]


def _alone(side: Side, other: Side, used: set[str]) -> list[str]:
    """Layers of one side alone; not those that the other one has folded into a layer, nor blocks of layers."""
    names = [name for name in side.layers if name not in other.layers and name not in used]
    return [name for name in names if not any(layer.startswith(f"{name}.") for layer in side.layers)]


def _rows(one: Side, two: Side, pairs: dict[str, _Pair]) -> list[dict[str, Any]]:
    rows, largest = list[dict[str, Any]](), _NOISE
    for name, pair in pairs.items():
        error = pair.error
        jump = error >= max(FLOOR, RISE * largest)
        kinds = {"type": one.layers[name].kind, "other": two.layers[name].kind}
        rows.append({"name": name, **kinds, "error": _short(error), "jump": jump})
        largest = max(largest, error)
    return rows


def _short(value: float) -> float:
    return float(f"{value:.4g}")
