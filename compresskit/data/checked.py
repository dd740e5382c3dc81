"""A batch as a model takes it, or an error that says what is wrong with the data."""

from __future__ import annotations

import numpy as np

from compresskit.data.prepare import complete, fits, shape_text
from compresskit.data.source import Batch
from compresskit.errors import InputError
from compresskit.model import InputSpec


def checked(batch: Batch, name: str, inputs: tuple[InputSpec, ...]) -> dict[str, np.ndarray]:
    """The inputs of a batch by name, helper inputs filled in.

    Args:
        batch: From a source.
        name: Of the source, for messages.
        inputs: What the model takes; empty where that isn't known: then the data's names are kept.

    Raises:
        InputError: NaN or Inf, an input that isn't there, or another shape.
    """
    arrays = complete(batch.inputs, inputs) if inputs else batch.inputs
    for spec in inputs:
        if not fits(arrays[spec.name].shape, spec.shape):
            found, wanted = shape_text(arrays[spec.name].shape), shape_text(spec.shape)
            raise InputError(
                f"{name}: '{spec.name}' is {found}, the model takes {wanted}", "prepare the data as for inference"
            )
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{name}: '{key}' holds NaN or Inf", "remove those samples")
    return arrays
