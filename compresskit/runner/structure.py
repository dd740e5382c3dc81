"""What a model does on samples: what is found, and what could work."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import UsageError
from compresskit.model import Model
from compresskit.runner.readings import readings
from compresskit.stage import Context, Progress, silent

if TYPE_CHECKING:
    from compresskit.data.source import Source

SAMPLES = 256
"""Samples that are looked at, where nothing else is asked for."""
_BATCH = 16


def structure(
    model: Model, source: Source, *, samples: int = SAMPLES, seed: int = 0, progress: Progress = silent
) -> dict[str, Any]:
    """Look at a model on samples; see :func:`compresskit.ops.structure.look.structure`.

    Args:
        model: Its body is a module, its inputs are known; not changed.
        source: Samples; labels only tell that the outputs are scores of classes.
        samples: Most samples to take.
        seed: Of what is drawn.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        JSON: what is found, the samples, and ``readings``: what could work.

    Raises:
        UsageError: The model is no module.
        InputError: The data don't fit.
    """
    from compresskit.ops.macs import calling
    from compresskit.ops.structure.look import structure as look
    from compresskit.ops.structure.savings import Inputs
    from compresskit.stages.batches import calibration, labelled_data

    if isinstance(model.body, Path):
        raise UsageError("`structure` needs a module: it is run on samples", "give `arch` FILE.py:NAME")
    module = model.module.eval()
    with tempfile.TemporaryDirectory(prefix="compresskit-") as folder, calling(module):
        ctx = Context(work=Path(folder), data=source, seed=seed, progress=progress)
        data = labelled_data(model, ctx, samples=samples, size=_BATCH)
        takes = Inputs(
            texts=any(not spec.dtype.startswith("float") for spec in model.card.inputs),
            free=any(isinstance(size, str) for spec in model.card.inputs for size in spec.shape[1:]),
        )
        found = look(module, data, seed=seed, progress=progress, inputs=takes)
    found |= calibration(source, samples)
    return found | {"readings": readings(found)}
