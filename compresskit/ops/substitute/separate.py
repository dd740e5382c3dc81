"""Convolutions made depthwise along a model, the 1×1 of each fitted on what it is given."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import Trace
from compresskit.ops.output_distance import OutputDistance, keep_nearest, split
from compresskit.ops.packed.modules import set_module
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.candidates import Progress
from compresskit.ops.substitute.depthwise import Depthwise
from compresskit.ops.substitute.walk import Part, correct, movable


@torch.no_grad()
def separate(
    module: nn.Module,
    names: Collection[str],
    multiplier: int,
    found: Trace,
    data: CalibrationData,
    progress: Progress,
) -> dict[str, Any]:
    """Make convolutions depthwise, in place, and fit the model from the first of them on.

    Args:
        module: In eval mode; the original.
        names: Of the convolutions, each called once.
        multiplier: Windows a channel.
        found: The trace of the module.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.

    Returns:
        Facts: see :func:`~compresskit.ops.output_distance.keep_nearest`.
    """
    used, held = split(data.batches)
    away = OutputDistance(module, held, data.forward, scores=data.scores)
    walked = copy.deepcopy(module)
    _walk(walked, names, multiplier, found, dataclasses.replace(data, batches=used), progress)
    for name in names:
        set_module(module, name, made(module, name, multiplier))
    return keep_nearest(module, {"parts": (away(module), module), "fitted": (away(walked), walked)})


def made(module: nn.Module, name: str, multiplier: int) -> Depthwise:
    """A convolution of a model as depthwise ones and a 1×1, by its weights alone.

    Raises:
        TypeError: It is none.
    """
    layer = module.get_submodule(name)
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(f"'{name}' is no convolution")
    return Depthwise(layer, multiplier).fill(layer)


def _walk(
    module: nn.Module,
    names: Collection[str],
    multiplier: int,
    found: Trace,
    data: CalibrationData,
    progress: Progress,
) -> None:
    layers = movable(module, dict.fromkeys(c.name for c in found.calls if c.name))
    once, started, done = found.once(), False, 0

    def step(segment: Segment) -> None:
        nonlocal started, done
        place = once[segment.name].first if segment.name else None
        for name in (n for group in segment.groups for n in group if n in once):
            if name in names:
                set_module(module, name, made(module, name, multiplier))
                started = True
            if started:
                correct(Part(segment, name, found, place))
            done += 1
            progress("fit along the model", done, len(layers))

    run_sequentially(module, data.batches, data.forward, layers, step, original=True, found=found)
