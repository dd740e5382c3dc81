"""What a model is made of, and what each stage could do with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError, UsageError
from compresskit.model import Model
from compresskit.runner.estimates import estimates, kinds_of_layers
from compresskit.runner.estimates import sensitivity as measured
from compresskit.runner.structure import SAMPLES
from compresskit.runner.structure import structure as structure_of
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source


def inspected(
    model: Model, *, spectrum: bool = False, sensitivity: Source | None = None, structure: Source | None = None,
    samples: int = SAMPLES, seed: int = 0, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Inspect a model.

    Args:
        model: Not changed.
        spectrum: Add the singular values of Linear layers and convolutions, in figures.
        sensitivity: Samples to measure on what the output loses when one layer alone is in 4 bit.
        structure: Samples to look at what the model does on.
        samples: Most of them to take.
        seed: Seed of the random inputs, and of lines between samples.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        JSON: layers, totals, history and estimates; ``structure`` where samples for it are given.

    Raises:
        UsageError: What is asked for needs the architecture.
        InputError: The model has no layer to show the spectrum of.
    """
    found = _layers(model)
    if spectrum:
        found["spectrum"] = _spectrum(model)
    found["notes"] += model.notes
    found["history"] = [applied.name for applied in model.card.history]
    found["estimates"] = estimates(model, found, seed=seed)
    if sensitivity is not None:
        found["estimates"]["sensitivity"] = measured(model, sensitivity, progress)
    if structure is not None:
        found["structure"] = structure_of(model, structure, samples=samples, seed=seed, progress=progress)
    return found


def layers_and_kinds(model: Model) -> dict[str, Any]:
    """As :func:`inspected`, of the estimates only which kinds of layers hold the bytes: quick."""
    found = _layers(model)
    found["estimates"] = {"kinds": kinds_of_layers(model, found)}
    return found


def _layers(model: Model) -> dict[str, Any]:
    """What the model is made of."""
    if not isinstance(model.body, Path):
        from compresskit.ops.inspect import inspect_module

        return inspect_module(model.body, model.card.inputs)
    if model.body.suffix == ".onnx":
        from compresskit.ops.inspect_onnx import inspect_onnx

        return inspect_onnx(model.body)
    from compresskit.checkpoint.tensors import open_tensors
    from compresskit.ops.inspect import inspect_tensors

    return inspect_tensors(open_tensors(model.body, allow_nonfinite=True, key=model.key))


def _spectrum(model: Model) -> list[dict[str, Any]]:
    """The singular values of a model's layers, in figures.

    Raises:
        UsageError: The architecture isn't known.
        InputError: The model has no layer in floating point to look at.
    """
    from compresskit.ops.factorize.spectrum import spectrum

    if isinstance(model.body, Path):
        raise UsageError("`spectrum` needs a module: which tensors are layers isn't known", "give `arch` FILE.py:NAME")
    found = spectrum(model.body)
    if not found:
        raise InputError("no Linear layer or convolution of this model has a weight in floating point")
    return found
