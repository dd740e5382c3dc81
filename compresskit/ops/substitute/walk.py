"""Stand-ins fitted along the model, each on what it is given behind those before it, and the layers between them too.

A stand-in aims at what stood in front of the original block's last step. The layers of the blocks that stay aim at what
the original computed at their place: one that is added to a stream, at the sum. So a block repairs what earlier
stand-ins did to the stream that passes by it, which a fit of its own output alone can't.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compresskit.ops.calibration.moments import collectable, columns_of
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import Trace, tensors_in
from compresskit.ops.output_distance import OutputDistance, keep_nearest, split
from compresskit.ops.packed.modules import set_module
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.alone import arguments_of
from compresskit.ops.substitute.candidates import Candidate, Fit, Progress
from compresskit.ops.substitute.normal_equations import NormalEquations
from compresskit.ops.substitute.recorder import observed, placed

_ALIKE = 1e-3
"""Spread of a layer's effect on a sum up to which it is the same everywhere, relative to its largest effect; and the
effect below which a channel counts as without any."""


@torch.no_grad()
def apply(
    module: nn.Module,
    chosen: Sequence[Candidate],
    found: Trace,
    data: CalibrationData,
    progress: Progress,
    *,
    refit: bool,
) -> dict[str, Any]:
    """Put stand-ins into a module, in place, fitted again from the first to the last.

    Args:
        module: In eval mode; the original.
        chosen: What stands in for which block.
        found: The trace of the module.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.
        refit: Fit the layers behind the first stand-in too.

    Returns:
        Facts: the output's distance before and after the fit along the model, on samples that it didn't use where there
        are enough, and which was ``kept``.
    """
    used, held = split(data.batches)
    away = OutputDistance(module, held, data.forward, scores=data.scores)
    tried: dict[str, tuple[float, nn.Module]] = {}
    walked = copy.deepcopy(module)
    _walk(walked, chosen, found, dataclasses.replace(data, batches=used), progress, refit=refit)
    for choice in chosen:
        set_module(module, choice.site.name, choice.stand_in)
    tried["stand-ins"] = away(module), module
    tried["fitted" if refit else "stand-ins in order"] = away(walked), walked
    return keep_nearest(module, tried)


def _walk(
    module: nn.Module,
    chosen: Sequence[Candidate],
    found: Trace,
    data: CalibrationData,
    progress: Progress,
    *,
    refit: bool,
) -> None:
    by_name = {choice.site.name: choice for choice in chosen}
    layers = [n for n in dict.fromkeys(c.name for c in found.calls) if n and _movable(module.get_submodule(n))]
    once = found.once()
    blocks, started = 0, False

    def step(segment: Segment) -> None:
        nonlocal blocks, started
        choice = by_name.get(segment.name)
        if choice is not None:
            set_module(module, segment.name, _refitted(segment, choice))
            started = True
        elif started and refit:
            for name in (n for group in segment.groups for n in group if n in once):
                _Correction(segment, name, found, once[segment.name].first if segment.name else None).make()
        blocks += 1
        progress("fit along the model", blocks, total)

    total = len({n.rpartition(".")[0] for n in layers})
    run_sequentially(module, data.batches, data.forward, layers, step, original=True, found=found)


def _movable(layer: nn.Module) -> bool:
    own = isinstance(layer._parameters.get("weight"), nn.Parameter)
    return own and collectable(layer) and type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d)


def _refitted(segment: Segment, choice: Candidate) -> nn.Module:
    """A stand-in that gives, on what it is given now, what the original gave on the original's input."""
    block, place = segment.module, choice.site.place
    fit = Fit(block, choice.site.options[choice.kind])
    for index in range(segment.batches):
        given = placed(place, *arguments_of(block, partial(segment.replay, index)))
        fit.add(given, _original(segment, place, index).before, segment.keep[index])
    return fit.solved()


def _original(segment: Segment, place: int | str, index: int, wanted: Sequence[int] = ()) -> Any:
    if segment.original is None:
        raise ValueError("the calibration doesn't carry the original stream")
    return observed(segment.original, "", place, partial(segment.replay_original, index), wanted)


@dataclass
class _Correction:
    """One layer of a block that stays, moved to where it gives what the original gave at its place.

    Attributes:
        segment: The block, or what lies behind the last.
        name: Of the layer.
        found: The trace of the model.
        place: Where the block's input stands; None behind the last block.
    """

    segment: Segment
    name: str
    found: Trace
    place: int | str | None

    def make(self) -> None:
        """Move the weight, and the bias or that of the batch normalization behind it."""
        layer = self.segment.layer(self.name)
        groups = getattr(layer, "groups", 1)
        join = None if self.place is None else self._join()
        sums = NormalEquations()
        for index in range(self.segment.batches):
            given, now = self._run(self.segment.root.get_submodule(self.segment.name), index, join, original=False)
            _, wanted = self._run(self.segment.original, index, join, original=True)
            if now.shape != wanted.shape:
                return  # routing that depends on the data
            error = wanted - now
            if join is not None:
                error = error / join.scale
            keep = self.segment.keep[index]
            sums.add(columns_of(layer, given, keep), _positions(layer, error, keep, groups))
        norm = self._norm()
        level = layer._parameters.get("bias")
        weight, shift = sums.solve(bias=level is not None or norm is not None)
        layer.get_parameter("weight").add_(weight.reshape(layer.get_parameter("weight").shape))
        shift = shift.reshape(-1)
        if level is not None:
            level.add_(shift)
        elif norm is not None:
            norm.get_parameter("bias").add_(shift * _gain(norm))

    def _run(self, module: Any, index: int, join: _Join | None, *, original: bool) -> tuple[Tensor, Tensor]:
        """The layer's input, and what is compared: the sum that it goes into, or its output."""
        replay = self.segment.replay_original if original else self.segment.replay
        kept: list[Tensor] = []

        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
            kept.extend((next(tensors_in((args, kwargs))).clone(), out.clone()))

        layer = module.get_submodule(self.segment.local(self.name))
        handle = layer.register_forward_hook(hook, with_kwargs=True)
        try:
            if join is None or self.place is None:
                replay(index)
            else:
                kept.append(observed(module, "", self.place, partial(replay, index), (join.sum,)).sums[join.sum])
        finally:
            handle.remove()
        return kept[0], kept[2] if join is not None else kept[1]

    def _norm(self) -> nn.Module | None:
        """The batch normalization that alone reads the layer's output."""
        users = self.found.consumers(self.name)
        if len(users) != 1:
            return None
        user = self.segment.root.get_submodule(next(iter(users))) if users != {"(output)"} else None
        return user if isinstance(user, _BatchNorm) and user.affine and user.running_var is not None else None

    def _join(self) -> _Join | None:
        """The sum that the layer's output goes into, unchanged but for a factor a channel; None without one."""
        block, place = self.segment.module, self.place
        layer = self.segment.layer(self.name)
        if place is None:
            return None
        axis = 1 if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else -1
        run = partial(self.segment.replay, 0)
        before = observed(block, "", place, run, None).sums
        pushes: list[Tensor] = []

        def push(_layer: nn.Module, _args: Any, out: Tensor) -> Tensor:
            shape = [1] * out.dim()
            shape[axis] = out.shape[axis]
            pushes.append(out.float().std().clamp(min=1e-3).to(out.dtype) * torch.ones(shape, dtype=out.dtype))
            return out + pushes[0]

        with ExitStack() as stack:
            stack.callback(layer.register_forward_hook(push).remove)
            after = observed(block, "", place, run, None).sums
        for number, value in before.items():
            moved = after[number] - value
            if moved.abs().max() > 0:
                return _even(number, moved / pushes[0], axis) if moved.dim() == pushes[0].dim() else None
        return None


@dataclass(frozen=True)
class _Join:
    """A sum, and the factors by which a layer's output comes into it; their shape broadcasts with the sum's."""

    sum: int
    scale: Tensor


def _even(number: int, ratio: Tensor, axis: int) -> _Join | None:
    """The factors, if each is the same everywhere."""
    flat = ratio.movedim(axis, -1).flatten(0, -2).double()
    scale = flat.mean(0)
    least = _ALIKE * float(scale.abs().max())
    if not least or bool(((flat - scale).abs() > least).any()):
        return None
    scale = scale.where(scale.abs() > least, torch.inf)  # nothing is asked of a channel that nobody hears
    shape = [1] * ratio.dim()
    shape[axis] = len(scale)
    return _Join(number, scale.reshape(shape).to(ratio.dtype))


def _gain(norm: nn.Module) -> Tensor:
    """By what a batch normalization multiplies each channel."""
    variance, eps = norm.get_buffer("running_var"), float(getattr(norm, "eps", 0.0))
    return norm.get_parameter("weight") / (variance + eps).sqrt()


def _positions(layer: nn.Module, y: Tensor, keep: Tensor | None, groups: int) -> Tensor:
    """An output as rows in the order of the layer's columns: ``(groups, positions, outputs of a group)``."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        flat = y.movedim(1, -1).flatten(0, -2)
        return flat.reshape(len(flat), groups, -1).permute(1, 0, 2)
    if keep is not None and y.dim() >= 3 and y.shape[:2] == keep.shape:
        y = y[keep]
    return y.reshape(1, -1, y.shape[-1])
