"""Layers replaced by cheaper parts along a model, the last part of each fitted on what it is given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.activation_stream import Batch
from compresskit.ops.calibration.moments import columns_of
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import Trace, tensors_in
from compresskit.ops.macs import count_macs
from compresskit.ops.output_distance import OutputDistance, keep_nearest, split
from compresskit.ops.packed.modules import set_module
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.candidates import Progress, few_of, mask_of
from compresskit.ops.substitute.normal_equations import NormalEquations
from compresskit.ops.substitute.parts import Parts
from compresskit.ops.substitute.walk import Part, correct, movable, positions_of


@dataclass(frozen=True)
class Replacement:
    """A layer and what could replace it.

    Attributes:
        name: Of the layer.
        loss: Distance of the model's output with it alone.
        whole: Multiply-accumulates of the layer.
        saved: How many fewer its parts take.
        time: Share of the layer's time; None where it wasn't measured.
    """

    name: str
    loss: float
    whole: float
    saved: float
    time: float | None = None


@torch.no_grad()
def separate(
    module: nn.Module, made: Mapping[str, Parts], found: Trace, data: CalibrationData, progress: Progress
) -> dict[str, Any]:
    """Put parts in the place of layers, in place, and fit the model from the first of them on.

    Args:
        module: In eval mode; the original.
        made: What replaces each layer, which is called once.
        found: The trace of the module.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Facts: see :func:`~compresskit.ops.output_distance.keep_nearest`.
    """
    used, held = split(data.batches)
    away = OutputDistance(module, held, data.forward, scores=data.scores)
    walked = copy.deepcopy(module)
    _walk(walked, copy.deepcopy(dict(made)), found, dataclasses.replace(data, batches=used), progress)
    for name, parts in made.items():
        set_module(module, name, parts)
    return keep_nearest(module, {"parts": (away(module), module), "fitted": (away(walked), walked)})


def _walk(
    module: nn.Module, made: Mapping[str, Parts], found: Trace, data: CalibrationData, progress: Progress
) -> None:
    layers = movable(module, dict.fromkeys(c.name for c in found.calls if c.name))
    once, started, done = found.once(), False, 0

    def step(segment: Segment) -> None:
        nonlocal started, done
        place = once[segment.name].first if segment.name else None
        for name in (n for group in segment.groups for n in group if n in once):
            if name in made:
                set_module(module, name, made[name])
                started = True
            if started:
                correct(Part(segment, name, found, place))
            done += 1
            progress("fit along the model", done, len(layers))

    run_sequentially(module, data.batches, data.forward, layers, step, original=True, found=found)


@torch.no_grad()
def replacements(
    module: nn.Module,
    made: Mapping[str, Parts],
    times: Mapping[str, float],
    data: CalibrationData,
    progress: Progress,
) -> list[Replacement]:
    """What the model's output loses by each replacement alone, its last part fitted on the original's inputs, in place.

    Args:
        module: In eval mode; not changed.
        made: What could replace each layer.
        times: Share of its time, where it was measured.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.
    """
    used, held = split(data.batches)
    sums = {name: NormalEquations() for name in made}
    for done, batch in enumerate(used, 1):
        with _adding(module, made, sums, mask_of(batch)):
            data.forward(module, batch)
        progress("fit parts", done, len(used))
    for name, parts in made.items():
        level = parts.point.bias
        weight, shift = sums[name].solve(bias=level is not None)
        parts.point.weight.add_(weight.reshape(parts.point.weight.shape))
        if level is not None:
            level.add_(shift.reshape(-1))
    away = OutputDistance(module, few_of(held), data.forward, scores=data.scores)
    before = count_macs(module, data.example)
    after = _macs(module, made, data.example)
    found = []
    for done, (name, parts) in enumerate(made.items(), 1):
        with _standing(module, {name: parts}):
            loss = away(module)
        whole = float(before.get(name, 0))
        found.append(Replacement(name, loss, whole, whole - after[name], times.get(name)))
        progress("measure parts", done, len(made))
    return found


@contextmanager
def _standing(module: nn.Module, made: Mapping[str, Parts]) -> Iterator[None]:
    """A module with parts in the place of layers for a while."""
    before = {name: module.get_submodule(name) for name in made}
    try:
        for name, parts in made.items():
            set_module(module, name, parts)
        yield
    finally:
        for name, layer in before.items():
            set_module(module, name, layer)


@contextmanager
def _adding(
    module: nn.Module, made: Mapping[str, Parts], sums: Mapping[str, NormalEquations], keep: Tensor | None
) -> Iterator[None]:
    """Adds what passes through a model to the fits of its parts' last layers, for a while."""

    def noting(name: str) -> Any:
        parts = made[name]

        def hook(_layer: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
            spread = parts.spread(next(tensors_in((args, kwargs))))
            error = out - parts.point(spread)
            sums[name].add(columns_of(parts.point, spread, keep), positions_of(parts.point, error, keep))

        return hook

    handles = [module.get_submodule(name).register_forward_hook(noting(name), with_kwargs=True) for name in made]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _macs(module: nn.Module, made: Mapping[str, Parts], example: Batch) -> dict[str, float]:
    """Multiply-accumulates of the parts of each layer."""
    with _standing(module, made):
        counts = count_macs(module, example)
    return {name: float(sum(n for part, n in counts.items() if part.startswith(f"{name}."))) for name in made}
