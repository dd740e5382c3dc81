"""Layers replaced in place, and the model fitted again to what the original gave."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.batchnorm import recalibrate
from compresskit.ops.calibration.gram import corrected
from compresskit.ops.calibration.moments import Moments, collectable
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import trace
from compresskit.ops.factorize.candidates import TIED
from compresskit.ops.factorize.chain import Factorized
from compresskit.ops.factorize.metric import Metric
from compresskit.ops.factorize.plan import ALGORITHMS, Choice, FactorizePlan, Progress
from compresskit.ops.globs import EXCLUDED, NOT_INCLUDED
from compresskit.ops.output_distance import OutputDistance, keep_nearest, split
from compresskit.ops.packed.modules import set_module
from compresskit.ops.prune.least_squares import refit
from compresskit.ops.shrinking import CalibrationData

_FORWARDS = [kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)]


def replace(module: nn.Module, chosen: FactorizePlan, choice: Choice) -> None:
    """Put the factors of the original weights in the place of layers, in place."""
    for name, option in choice.items():
        set_module(module, name, chosen.replacement(name, option))


@torch.no_grad()
def apply(
    module: nn.Module, chosen: FactorizePlan, choice: Choice, data: CalibrationData, progress: Progress
) -> dict[str, Any]:
    """Replace layers of a module in place, and fit the model again where there are data.

    Args:
        module: The plan's module.
        chosen: The plan.
        choice: What takes the place of which layer.
        data: What it is run on.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        Facts: the output's distance from the original's before and after the refit, on samples that it didn't use where
        there are enough; and which was ``kept``: the factors of the original weights, fitted ones, or these with batch
        normalizations re-estimated too, whatever is nearest.
    """
    fits = chosen.settings.refit and bool(data.batches) and bool(choice)
    original = copy.deepcopy(module) if fits else module
    replace(module, chosen, choice)
    if not fits:
        return {}
    used, held = split(data.batches)
    away = OutputDistance(original, held, data.forward, scores=data.scores)
    tried = {"factors": (away(module), module)}
    settled = copy.deepcopy(module)
    if recalibrate(settled, data.forward, used):
        tried["recalibrated"] = (away(settled), settled)
    fitted = fit(original, chosen, choice, dataclasses.replace(data, batches=used), progress)
    tried["fitted"] = (away(fitted), fitted)
    again = copy.deepcopy(fitted)
    if recalibrate(again, data.forward, used):
        tried["fitted, recalibrated"] = (away(again), again)
    return keep_nearest(module, tried)


def fit(
    original: nn.Module, chosen: FactorizePlan, choice: Choice, data: CalibrationData, progress: Progress
) -> nn.Module:
    """A factorized copy of a model whose layers make up, from the first to the last, for what earlier ones lost.

    Each weight moves to the least-squares solution on the factorized model's own inputs before it is taken apart: with
    these inputs as the metric that is the best there is for its rank ("reduced-rank regression", Izenman, 1975), so
    two factors need no turns. Of three factors, and of a k×1 with a 1×k, the last is fitted once more by itself.
    """
    module = copy.deepcopy(original)
    calls = trace(original, lambda: data.run(original)).calls
    fixed = {n for n, why in chosen.found.skipped.items() if why in (EXCLUDED, NOT_INCLUDED) or why.startswith(TIED)}
    called = [n for n in dict.fromkeys(c.name for c in calls) if n and n not in fixed]
    names = [n for n in called if _plain(original.get_submodule(n))]
    done = 0

    def step(segment: Segment) -> None:
        nonlocal done
        for group in segment.groups:
            moments = segment.moments(group, cross=True)
            for name in group:
                if name in moments:
                    _settle(module, name, moments[name], chosen, choice)
                done += 1
                progress("fit the layers", done, len(names))

    run_sequentially(module, data.batches, data.forward, names, step, original=True)
    ends = {f"{n}.{len(module.get_submodule(n)) - 1}": n for n, o in choice.items() if o.kind in ("spatial", "cp")}  # type: ignore[arg-type]
    counts = {end: sum(c.name == name for c in calls) for end, name in ends.items()}
    refit(module, original, {}, counts, data, progress, after=ends)
    return module


def _plain(layer: nn.Module) -> bool:
    """True for layers that can be moved: with a weight of their own, and doing with it what their kind does."""
    own = isinstance(layer._parameters.get("weight"), nn.Parameter)
    return own and collectable(layer) and type(layer).forward in _FORWARDS


def _settle(module: nn.Module, name: str, moments: Moments, chosen: FactorizePlan, choice: Choice) -> None:
    """Move one layer's weight and bias to the least-squares solution, and replace it if that was chosen."""
    layer: Any = module.get_submodule(name)
    weight: Tensor = layer.weight
    bias = layer.bias
    aim = weight.double().reshape(len(moments.gram), -1, moments.gram.shape[1])
    new = corrected(weight, moments if bias is None else moments.centred(), 1.0)
    option = choice.get(name)
    if option is not None:
        metric = Metric(moments.gram[0].double(), chosen.metrics[name].outer)
        factors = ALGORITHMS[option.kind](new, metric).factors(option.ranks)
        made = Factorized(layer, option.kind, option.ranks).fill(factors, bias)
        new = made.merged()
        set_module(module, name, made)
    else:
        weight.copy_(new)
    if bias is not None and moments.drift is not None:
        # What the bias makes up for: what is left of the mean.
        before = (aim @ (moments.mean + moments.drift).double().unsqueeze(2)).reshape(-1)
        after = (new.double().reshape(aim.shape) @ moments.mean.double().unsqueeze(2)).reshape(-1)
        target = bias if option is None else made[-1].get_parameter("bias")
        target.copy_(bias.double() + before - after)
