"""Made-up inputs that try an exported model: zeros, extremes and seeded random values, at several sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compresskit.model import InputSpec

EDGES = ("zeros", "high", "large", "tiny")
_BATCHES = (1, 3, 8)
_LENGTHS = (12, 5)
_LARGE, _TINY = 100.0, 1e-4
Limits = dict[str, tuple[int, int | None]]


def samples(
    inputs: tuple[InputSpec, ...], *, count: int = 32, seed: int = 0, limits: Limits | None = None
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Feeds with a name each, together at least ``count`` samples; first the edges, then random ones.

    Args:
        inputs: What the model takes; a string axis varies: ``batch`` over 1, 3 and 8, any other over two sizes.
        count: Samples (rows of the first axis) in all.
        seed: Of the random values.
        limits: Smallest and largest size of an axis, where it has such.

    Yields:
        ``(kind, arrays by input name)``. Integers stay below the input's ``high``; a mask attends to at least the
        first position of each row, for what is computed from nothing has no right answer.
    """
    rng = np.random.default_rng(seed)
    done = turn = 0
    while done < count or turn < len(EDGES) + len(_BATCHES):
        kind = EDGES[turn] if turn < len(EDGES) else "random"
        batch = 1 if kind != "random" else _BATCHES[min(turn - len(EDGES), len(_BATCHES) - 1)]
        sizes = _sizes(inputs, batch, _LENGTHS[turn % 2], limits or {})
        feeds = {spec.name: _array(spec, kind, sizes, rng) for spec in inputs}
        yield kind, feeds
        first = feeds[inputs[0].name]
        done += first.shape[0] if first.ndim else 1
        turn += 1


def _sizes(inputs: tuple[InputSpec, ...], batch: int, length: int, limits: Limits) -> dict[str, int]:
    sizes = {}
    for name in {d for spec in inputs for d in spec.shape if isinstance(d, str)}:
        size = batch if name == "batch" else length if name == "sequence" else length + 28
        low, high = limits.get(name, (0, None))
        sizes[name] = max(low, min(size, size if high is None else high))
    return sizes


def _array(spec: InputSpec, kind: str, sizes: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
    dtype = np.dtype(spec.dtype)
    if "mask" in spec.name and (dtype.kind != "f"):
        return _mask(shape, kind, rng).astype(dtype)
    if dtype.kind == "f":
        scale = {"zeros": 0.0, "large": _LARGE, "tiny": _TINY}.get(kind, 1.0)
        values = np.ones(shape) if kind == "high" else rng.standard_normal(shape)
        return (values * scale).astype(dtype)
    high = spec.high or 2
    if kind == "zeros":
        return np.zeros(shape, dtype)
    if kind == "high":
        return np.full(shape, high - 1, dtype)
    return rng.integers(0, high, shape).astype(dtype)


def _mask(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> np.ndarray:
    """Ones, or for random feeds rows that end in padding; never a row of zeros."""
    if kind != "random" or not shape or not shape[-1]:
        return np.ones(shape, bool)
    kept = rng.integers(1, shape[-1] + 1, (*shape[:-1], 1))
    return np.arange(shape[-1]) < kept
