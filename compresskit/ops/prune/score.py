"""Groups with their units in the order in which they should go, by any criterion; and what is lost at each width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.moments import Collector, Moments, collectable
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.prune import importance
from compresskit.ops.prune.allocate import Ranked, widths_of
from compresskit.ops.prune.elimination import eliminate, refitted
from compresskit.ops.prune.graph import Group
from compresskit.ops.quantize.sensitivity import Trial
from compresskit.ops.shrinking import CalibrationData

Criterion = Literal["reconstruction", "l1", "l2", "bn-scale", "activation", "taylor", "hessian"]
FREE = ("l1", "l2", "bn-scale")
"""The criteria that need no data."""
_MEASURED = 4
"""Widths of a group that are measured; those between are taken from their neighbours."""


def input_moments(module: nn.Module, groups: Sequence[Group], data: CalibrationData) -> dict[str, Moments]:
    """Second moments of what the layers that read a group take in."""
    names = {m.layer for group in groups for m in group.of("in") if collectable(module.get_submodule(m.layer))}
    return moments_of(module, sorted(names), data)


@torch.no_grad()
def moments_of(module: nn.Module, names: Sequence[str], data: CalibrationData) -> dict[str, Moments]:
    """Second moments of what layers take in, padding left out.

    Args:
        module: In eval mode.
        names: Layers that are :func:`~compresskit.ops.calibration.moments.collectable`.
        data: Inputs, and how the module is called with them.

    Returns:
        By name; layers that weren't called are missing.
    """
    collectors = {name: Collector(module.get_submodule(name)) for name in names}
    mask: list[Tensor | None] = [None]

    def collecting(name: str) -> Any:
        return lambda _layer, args, kwargs: collectors[name].add(next(tensors_in((args, kwargs))), mask[0])

    handles = [
        module.get_submodule(name).register_forward_pre_hook(collecting(name), with_kwargs=True) for name in names
    ]
    try:
        for batch in data.batches:
            known = batch.get("attention_mask")
            mask[0] = None if known is None or known.dim() != 2 else known.bool()
            data.forward(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: collector.moments() for name, collector in collectors.items()}
    return {name: moments for name, moments in found.items() if moments is not None}


def rank(
    module: nn.Module,
    groups: Sequence[Group],
    criterion: Criterion,
    data: CalibrationData,
    moments: dict[str, Moments],
    progress: Callable[[str, int, int], None],
) -> list[Ranked]:
    """Put the units of each group in the order in which they should go.

    Args:
        module: In eval mode.
        groups: The groups.
        criterion: What a channel's score is computed from.
        data: For the criteria that need any.
        moments: Of the layers that read the groups; see :func:`input_moments`.
        progress: Called after each group.
    """
    found: list[Ranked] = []
    slopes: list[dict[str, Tensor]] = []
    if criterion in ("taylor", "hessian"):
        slopes = _gradients(module, groups, data)
    for done, group in enumerate(groups, 1):
        if criterion == "reconstruction" and any(m.layer in moments for m in group.of("in")):
            order, added = eliminate(module, group, moments)
            found.append(Ranked(group, order, added))
        else:
            scores = _scores(module, group, criterion, moments, slopes)
            order = scores.argsort(stable=True).tolist()
            found.append(Ranked(group, order, scores[order].tolist()))
        progress("rank channels", done, len(groups))
    return found


def _scores(
    module: nn.Module, group: Group, criterion: Criterion, moments: dict[str, Moments], slopes: list[dict[str, Tensor]]
) -> Tensor:
    if criterion in ("l1", "l2", "reconstruction"):  # what no layer reads has nothing to be reconstructed
        return importance.by_norm(module, group, 1 if criterion == "l1" else 2)
    if criterion == "bn-scale":
        return importance.by_scale(module, group)
    if criterion == "activation":
        return importance.by_activation(module, group, lambda name: _channel_squares(module, name, moments))
    return importance.by_gradient(module, group, slopes, second=criterion == "hessian")


def _channel_squares(module: nn.Module, name: str, moments: dict[str, Moments]) -> Tensor:
    """Mean square of a layer's input channels, those of a grouped convolution's groups one behind the other."""
    weight = module.get_submodule(name).get_parameter("weight")
    if name not in moments:
        return torch.ones(weight.shape[1])
    diagonal = moments[name].gram.diagonal(dim1=1, dim2=2)
    return diagonal.reshape(-1, weight.shape[1], weight[0, 0].numel()).mean((0, 2))


def _gradients(module: nn.Module, groups: Sequence[Group], data: CalibrationData) -> list[dict[str, Tensor]]:
    layers = sorted({m.layer for group in groups for m in group.of("out")})
    numbered, labels = list(range(len(data.batches))), data.labels

    def loss(target: nn.Module, index: int) -> Tensor:
        out = next(tensors_in(data.forward(target, data.batches[index])))
        fits = labels is not None and out.dim() == 2 and len(out) == len(labels[index])
        return importance.own_loss(out, labels[index] if labels is not None and fits else None)

    return list(importance.gradients(module, layers, numbered, loss))


@torch.no_grad()
def losses(
    module: nn.Module,
    ranked: Sequence[Ranked],
    multiple: int,
    data: CalibrationData,
    moments: dict[str, Moments],
    progress: Callable[[str, int, int], None],
) -> dict[str, dict[int, float]]:
    """How far the model's outputs move when one group alone gets narrower, and its readers are fitted again.

    Args:
        module: In eval mode; is as before afterwards.
        ranked: The groups.
        multiple: Of widths.
        data: Inputs to measure on.
        moments: Of the layers that read the groups.
        progress: Called after each measurement.

    Returns:
        Group name and width to the distance, 0 for whole groups.
    """
    trial = Trial(module, data.batches, data.forward, scores=data.scores)
    plan = {r.group.name: _some(widths_of(r.group, multiple)) for r in ranked}
    total, done = sum(map(len, plan.values())), 0
    found: dict[str, dict[int, float]] = {}
    for r in ranked:
        name = r.group.name
        known: dict[int, float] = {r.group.units: 0.0}
        for width in plan[name]:
            known[width] = trial.distance(refitted(module, r.group, moments, r.kept(width)))
            done += 1
            progress("measure narrower groups", done, total)
        found[name] = _between(known, widths_of(r.group, multiple))
    return found


def _some(widths: Sequence[int]) -> list[int]:
    """Some of the widths below the whole one, evenly apart, the narrowest among them."""
    below = widths[1:]
    if len(below) <= _MEASURED:
        return list(below)
    at = {round((i + 1) * len(below) / _MEASURED) - 1 for i in range(_MEASURED)}
    return [below[i] for i in sorted(at)]


def _between(known: dict[int, float], widths: Sequence[int]) -> dict[int, float]:
    """Losses at all widths: never smaller for a narrower one, and on a line between two that were measured."""
    level = 0.0
    points: list[tuple[int, float]] = []
    for width in sorted(known, reverse=True):
        level = max(level, known[width])
        points.append((width, level))
    found: dict[int, float] = {}
    for width in widths:
        above = [p for p in points if p[0] >= width][-1]
        below = next((p for p in points if p[0] <= width), above)
        share = 0.0 if above == below else (above[0] - width) / (above[0] - below[0])
        found[width] = above[1] + share * (below[1] - above[1])
    return found
