"""Made-up inputs, for comparing two models when there is no data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from compresskit.benchmark.feeds import make_feeds
from compresskit.data.source import Batch
from compresskit.data.walking import Fingerprint, spans
from compresskit.errors import UsageError
from compresskit.model import InputSpec

_SEQUENCE = 32


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
    """Random samples for a model's inputs; see :func:`compresskit.benchmark.feeds.make_feeds` for the values.

    Args:
        inputs: The model's.
        n: Samples.
        sizes: Sizes of named axes; ``sequence`` is 32 unless told, the first axis is always the batch.
        seed: Of every value.

    Raises:
        UsageError: Inputs unknown, an axis without a size, or token ids of an unknown vocabulary.
    """
    if not inputs:
        raise UsageError("the model's inputs are not known", "give `input_shape` or `data`")
    for spec in inputs:
        if np.dtype(spec.dtype).kind in "iu" and spec.high is None and spec.implied((1,)) is None:
            raise UsageError(
                f"the largest value of the model's integer input '{spec.name}' is not known", "give samples with `data`"
            )
    inputs = tuple(spec.by_sample for spec in inputs)
    whole = [replace(spec, shape=("batch", *spec.shape[1:])) for spec in inputs]
    values = make_feeds(whole, {"sequence": _SEQUENCE, **(sizes or {}), "batch": n}, seed)
    first = inputs[0]
    tokens = np.dtype(first.dtype).kind in "ui"
    kind = "tokens" if tokens else "images" if len(first.shape) == 4 else "arrays"
    return SyntheticSource(values, kind, {"seed": seed, "n": n, "inputs": [_described(s) for s in inputs]})


def _described(spec: InputSpec) -> dict[str, object]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape, "high": spec.high}
