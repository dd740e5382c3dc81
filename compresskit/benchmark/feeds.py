"""Made-up inputs of the right kind: what a model is timed with when speed is all that is asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.errors import InputError, UsageError
from compresskit.model import InputSpec

SEQUENCE = 128  # tokens, where nobody says


def make_feeds(
    inputs: Iterable[InputSpec], sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Arrays for each input, the same for the same arguments.

    Floats are standard normal. Integers are uniform in ``[0, high)``; without ``high`` those of 8 bits take their whole
    range and wider ones are zero, the only index that every table has. Masks, token types and positions are what
    :meth:`compresskit.model.InputSpec.implied` says.

    Args:
        inputs: What the model takes.
        sizes: Sizes of named axes, see :func:`axis_sizes`.
        seed: Of the random numbers.

    Returns:
        Array by input name.

    Raises:
        InputError: An input is of a type that numpy doesn't have.
        UsageError: The size of an axis is neither given nor known.
    """
    rng, inputs, sizes = np.random.default_rng(seed), list(inputs), dict(sizes or {})
    batches = {spec.shape[spec.batch_axis] for spec in inputs if spec.batch_axis is not None and spec.shape}
    for name in batches - sizes.keys():
        if isinstance(name, str) and not _is_sequence(name):  # the same axis, wherever it lies in other inputs
            sizes[name] = sizes.get("batch", 1)
    return {spec.name: _array(spec, axis_sizes(spec, sizes), rng) for spec in inputs}


def write_feeds(feeds: Iterable[Mapping[str, np.ndarray]], path: Path) -> int:
    """Write the inputs of some calls into an ``.npz``; returns how many calls."""
    every = list(feeds)
    arrays: dict[str, Any] = {f"{at}:{name}": array for at, one in enumerate(every) for name, array in one.items()}
    np.savez(path, **arrays)
    return len(every)


def read_feeds(path: Path, names: Collection[str]) -> list[dict[str, np.ndarray]]:
    """The inputs of each call that :func:`write_feeds` wrote, those of some names alone."""
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as stored:
        for key in stored.files:
            place, _, name = key.partition(":")
            if name in names:
                found.setdefault(int(place), {})[name] = stored[key]
    return [found[place] for place in sorted(found)]


def axis_sizes(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of one input.

    A named axis takes ``sizes[name]``. Else an axis that is first or called like a batch takes ``sizes["batch"]``
    (1 without it), and one called like a sequence, or second in an integer input, ``sizes["sequence"]`` (128).

    Raises:
        UsageError: None of these says how large an axis is.
    """
    return tuple(
        size if isinstance(size, int) else _size(spec, axis, size, sizes) for axis, size in enumerate(spec.shape)
    )


def _size(spec: InputSpec, axis: int, name: str, sizes: Mapping[str, int]) -> int:
    lower = name.lower()
    if name in sizes:
        return sizes[name]
    if _is_sequence(name):
        return sizes.get("sequence", SEQUENCE)
    if axis == 0 or "batch" in lower:
        return sizes.get("batch", 1)
    if axis == 1 and "int" in spec.dtype:
        return sizes.get("sequence", SEQUENCE)
    raise UsageError(f"input '{spec.name}' has axis {axis} ('{name}') of no fixed size", "give it with `input_shape`")


def _is_sequence(name: str) -> bool:
    return any(word in name.lower() for word in ("seq", "length", "token", "time"))


def _array(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind in "iubf" and (implied := spec.implied(shape)) is not None:
        return implied
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape, np.float32), dtype)
    if dtype.kind not in "iub":
        raise InputError(f"input '{spec.name}' is of type {spec.dtype}, which cannot be generated")
    low, high = 0, spec.high or 1
    if dtype.itemsize == 1 and spec.high is None:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1
    return rng.integers(low, high, shape, dtype)
