"""Two models compared layer by layer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import UsageError
from compresskit.model import Model, portable
from compresskit.runner.prepare import with_inputs
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source
    from compresskit.ops.calibration.activation_stream import Batch
    from compresskit.ops.layerwise.side import Side

SAMPLES = 32
_BATCH = 8


def compare_layers(
    one: Model,
    two: Model,
    open_data: Callable[[Model], Source | None],
    *,
    samples: int = SAMPLES,
    threads: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Where two models part: the relative error of each layer that both have.

    Args:
        one: The model to compare with: a module, or an ONNX file.
        two: The other one.
        open_data: Gives the samples that suit a model; None: random inputs.
        samples: Most samples.
        threads: Of an operator, for ONNX files.
        seed: Of random inputs.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        JSON: see :func:`compresskit.ops.layerwise.parting.parting`; and ``models``, ``data``, ``samples``.

    Raises:
        UsageError: A model is bare tensors.
        InputError: The data don't fit, or there is no layer that both have.
    """
    from compresskit.errors import InputError
    from compresskit.ops.layerwise.parting import parting
    from compresskit.ops.macs import calling

    source = open_data(one)
    one, two = with_inputs(one, source), with_inputs(two, source)
    size = 1 if any(_fixed(model) for model in (one, two)) else _BATCH
    batches = _batches(one, source, size, samples, seed)
    count = sum(len(next(iter(batch.values()))) for batch in batches)
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder:
        sides: list[Side] = []
        for number, model in enumerate((one, two)):
            place = Path(folder) / str(number)
            place.mkdir()
            sides.append(_side(model, batches[0], place, threads))
        with ExitStack() as stack:
            for model in (one, two):
                if not isinstance(model.body, Path):
                    stack.enter_context(calling(model.body))
            found = parting(sides[0], sides[1], batches, progress)
    if not found["layers"]:
        raise InputError(
            f"{one.source} and {two.source} have no layer of the same name and shape",
            "layers of an ONNX file are known by the names of their weights, or by torch's names of operators",
        )
    names = [portable(model.source) for model in (one, two)]
    data = None if source is None else portable(source.name)
    return {"models": names, "data": data, "samples": count, **found}


def _fixed(model: Model) -> bool:
    """An ONNX file that takes one sample a call."""
    return isinstance(model.body, Path) and any(spec.shape[:1] == (1,) for spec in model.card.inputs)


def _batches(model: Model, source: Source | None, size: int, samples: int, seed: int) -> list[Batch]:
    from compresskit.stages.batches import batches_of, made_up

    if source is None:
        return [made_up(model.card.inputs, size, seed + n) for n in range(-(-samples // size))]
    return batches_of(source, model.card.inputs, size, min(samples, len(source)))


def _side(model: Model, example: Batch, folder: Path, threads: int) -> Side:
    from compresskit.ops.layerwise.onnx_side import OnnxSide
    from compresskit.ops.layerwise.side import TorchSide
    from compresskit.stages.batches import forward_of

    if not isinstance(model.body, Path):
        module = model.body.eval()
        return TorchSide(module, forward_of(module, model.card.inputs), example)
    if model.body.suffix != ".onnx":
        raise UsageError(f"{model.source} does not say how to build the module", "give `arch` FILE.py:NAME")
    return OnnxSide(model.body, folder, threads)
