"""Made-up inputs, for comparing two models when there is no data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from compresskit.data.source import Batch
from compresskit.data.walking import Fingerprint, spans
from compresskit.errors import UsageError
from compresskit.model import InputSpec


class SyntheticSource:
    """Seeded random inputs; sample ``i`` is the same whatever the batch size."""

    name, labelled = "synthetic inputs", False

    def __init__(self, inputs: dict[str, np.ndarray], kind: str, description: dict[str, object]) -> None:
        self.kind, self._inputs, self._description = kind, inputs, description

    def __len__(self) -> int:
        return len(next(iter(self._inputs.values())))

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`."""
        for span in spans(len(self), size, limit):
            yield Batch({name: values[span] for name, values in self._inputs.items()})

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`."""
        prepared = Fingerprint(self._description)
        for name, values in self._inputs.items():
            prepared.array(name, values)
        return prepared.hex()


def synthetic_inputs(
    inputs: tuple[InputSpec, ...], n: int, sizes: dict[str, int] | None = None, seed: int = 0
) -> SyntheticSource:
    """Random samples for a model's inputs: normal floats, uniform token ids, masks of ones, token types of zeros.

    Args:
        inputs: The model's.
        n: Samples.
        sizes: Sizes of named axes; ``sequence`` is 32 unless told, the first axis is always the batch.
        seed: Of every value.

    Raises:
        UsageError: Inputs unknown, an axis without a size, or token ids of an unknown vocabulary.
    """
    if not inputs:
        raise UsageError("the model's inputs are not known", "give --input-shape or --data")
    known = {"sequence": 32, **(sizes or {})}
    rng = np.random.default_rng(seed)
    values = {spec.name: _values(spec, _shape(spec, n, known), rng) for spec in inputs}
    first = inputs[0]
    tokens = np.dtype(first.dtype).kind in "ui"
    kind = "tokens" if tokens else "images" if len(first.shape) == 4 else "arrays"
    return SyntheticSource(values, kind, {"seed": seed, "n": n, "inputs": [asdict(s) for s in inputs]})


def _shape(spec: InputSpec, n: int, sizes: dict[str, int]) -> tuple[int, ...]:
    shape = [n]
    for axis in spec.shape[1:]:
        if isinstance(axis, str) and axis not in sizes:
            raise UsageError(
                f"the size of axis '{axis}' of the model's input '{spec.name}' is not known", "give --input-shape"
            )
        shape.append(sizes[axis] if isinstance(axis, str) else axis)
    return tuple(shape)


def _values(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = np.dtype(spec.dtype).kind
    if kind == "f":
        return rng.standard_normal(shape, np.float32).astype(spec.dtype, copy=False)
    if spec.name == "position_ids":
        return np.tile(np.arange(shape[-1], dtype=spec.dtype), (*shape[:-1], 1))
    if "mask" in spec.name or kind == "b":
        return np.ones(shape, spec.dtype)
    if "token_type" in spec.name:
        return np.zeros(shape, spec.dtype)
    if spec.high is None:
        raise UsageError(
            f"the largest value of the model's integer input '{spec.name}' is not known", "give samples with --data"
        )
    return rng.integers(0, spec.high, shape, dtype=spec.dtype)
