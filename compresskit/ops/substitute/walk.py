"""Stand-ins fitted along the model, each on what it is given behind those before it, and the layers between them too.

A stand-in aims at what stood in front of the original block's last step. The layers of the blocks that stay aim at what
the original computed at their place: one that is added to a stream, at the sum. So a block repairs what earlier
stand-ins did to the stream that passes by it, which a fit of its own output alone can't.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compresskit.ops.calibration.activation_stream import filled
from compresskit.ops.calibration.moments import collectable, columns_of
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import Trace, tensors_in
from compresskit.ops.globs import EXCLUDED
from compresskit.ops.output_distance import OutputDistance, keep_nearest, split
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.alone import arguments_of
from compresskit.ops.substitute.candidates import Candidate, Fit, Progress
from compresskit.ops.substitute.normal_equations import CAUTION, NormalEquations
from compresskit.ops.substitute.parts import Parts
from compresskit.ops.substitute.recorder import observed, placed
from compresskit.ops.substitute.sites import Places
from compresskit.ops.substitute.stand_in import put, renumber

_CAUTION = 0.5
"""See :meth:`NormalEquations.solve`: wide layers of tokens are soon fitted to noise, as tokens of a text are alike."""
_ALIKE = 1e-3
"""Spread of a layer's effect on a sum up to which it is the same everywhere, relative to its largest effect; and the
effect below which a channel counts as without any."""


@torch.no_grad()
def apply(
    module: nn.Module,
    chosen: Sequence[Candidate],
    places: Places,
    data: CalibrationData,
    progress: Progress,
    *,
    refit: bool,
) -> dict[str, Any]:
    """Put stand-ins into a module, in place, fitted again from the first to the last.

    Args:
        module: In eval mode; the original.
        chosen: What stands in for which block.
        places: What there was; layers in blocks that a glob excludes aren't fitted.
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
    _walk(walked, chosen, places, dataclasses.replace(data, batches=used), progress, refit=refit)
    for choice in chosen:
        put(module, choice.site.name, choice.stand_in, choice.fact.aim)
    tried["stand-ins"] = away(module), module
    tried["fitted" if refit else "stand-ins in order"] = away(walked), walked
    kept = keep_nearest(module, tried)
    renumber(module)
    return kept


def _walk(
    module: nn.Module,
    chosen: Sequence[Candidate],
    places: Places,
    data: CalibrationData,
    progress: Progress,
    *,
    refit: bool,
) -> None:
    found = places.trace
    fixed = [name for name, why in places.skipped.items() if why == EXCLUDED]
    # With the parts that go themselves, in which there may be no plain layer.
    parts = {c.site.name for c in chosen}
    plain = movable(module, dict.fromkeys(c.name for c in found.calls if c.name))
    layers = [n for n in dict.fromkeys(c.name for c in found.calls) if n in parts or n in plain]
    once, started, done = found.once(), False, 0
    gone: set[str] = set()

    def step(segment: Segment) -> None:
        nonlocal started, done
        place = once[segment.name].first if segment.name else None
        for name in (n for group in segment.groups for n in group if n in once):
            choice = next((c for c in chosen if _inside(name, c.site.name)), None)
            if choice is not None and choice.site.name not in gone:
                put(
                    module,
                    choice.site.name,
                    _refitted(Part(segment, choice.site.aim, found, place), choice),
                    choice.fact.aim,
                )
                gone.update((choice.site.name, choice.site.aim))
                started = True
            elif started and refit and not any(_inside(name, other) for other in (*gone, *fixed)):
                correct(Part(segment, name, found, place))
            done += 1
            progress("fit along the model", done, len(layers))

    run_sequentially(module, data.batches, data.forward, layers, step, original=True, found=found)


def _inside(name: str, holder: str) -> bool:
    return name == holder or name.startswith(f"{holder}.")


def movable(module: nn.Module, names: Iterable[str]) -> list[str]:
    """The plain layers among some, without those whose weight another one has too."""
    users = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    found = []
    for name in names:
        layer = module.get_submodule(name)
        weight = layer._parameters.get("weight")
        if collectable(layer) and type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d) and users[id(weight)] == 1:
            found.append(name)
    return found


def _refitted(part: Part, choice: Candidate) -> nn.Module:
    """A stand-in that gives, on what it is given now, what the original gave on the original's input."""
    segment, site = part.segment, choice.site
    fit = Fit(segment.layer(site.name), site.options[choice.kind])
    join = None if site.name == segment.name or site.ends else part.join()
    for index in range(segment.batches):
        layer = segment.layer(site.name)
        given = placed(site.place, *arguments_of(layer, partial(segment.replay, index)))
        if segment.original is not None and site.aim == site.name and join is None:
            run = partial(segment.replay_original, index)
            target = observed(segment.original, segment.local(site.name), site.place, run).before
        else:
            target = part.target(index, join)
        fit.add(given, target, segment.keep[index])
    return fit.solved()


def correct(part: Part) -> None:
    """Move a layer to where it gives what the original gave at its place; of several in its place the last one."""
    segment, whole = part.segment, part.segment.layer(part.name)
    layer = whole.point if isinstance(whole, Parts) else whole
    join, norm = part.join(), part.norm()
    if join is None and part.place is not None and isinstance(layer, nn.Linear):
        return  # many of a block of tokens, each fitted to the noise of the one before
    sums = NormalEquations()
    for index in range(segment.batches):
        given, now, total = part.run(segment.module, index, join, original=False)
        _, wanted, aim = part.run(segment.original, index, join, original=True)
        if now.shape != wanted.shape:
            return  # routing that depends on the data
        given = whole.spread(given) if isinstance(whole, Parts) else given
        keep, error = segment.keep[index], wanted - now if join is None else (aim - total) / join.scale
        sums.add(columns_of(layer, given, keep), positions_of(layer, error, keep))
    level = layer._parameters.get("bias")
    caution = _CAUTION if part.place is not None and isinstance(layer, nn.Linear) else CAUTION
    weight, shift = sums.solve(bias=level is not None or norm is not None, caution=caution)
    layer.get_parameter("weight").add_(weight.reshape(layer.get_parameter("weight").shape))
    if level is not None:
        level.add_(shift.reshape(-1))
    elif norm is not None:
        norm.get_parameter("bias").add_(shift.reshape(-1) * _gain(norm))


@dataclass(frozen=True)
class Part:
    """A layer, or a half of a block, in its segment of the model.

    Attributes:
        segment: The block that holds it, or what lies behind the last.
        name: Of the layer whose output is looked at.
        found: The trace of the model.
        place: Where the block's input stands; None behind the last block.
    """

    segment: Segment
    name: str
    found: Trace
    place: int | str | None

    def target(self, index: int, join: _Join | None) -> Tensor:
        """What the layer should give on a batch: the original's output, or what makes up for all of the sum's error."""
        _, wanted, aim = self.run(self.segment.original, index, join, original=True)
        if join is None:
            return wanted
        _, now, total = self.run(self.segment.module, index, join, original=False)
        return now + (aim - total) / join.scale

    def run(self, module: Any, index: int, join: _Join | None, *, original: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's input and output in a run of the segment, and the sum that it goes into."""
        replay = self.segment.replay_original if original else self.segment.replay
        kept: list[Tensor] = []

        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            kept.extend(next(tensors_in(value)).clone() for value in ((args, kwargs), out))

        layer = module.get_submodule(self.segment.local(self.name))
        handle = layer.register_forward_hook(hook, with_kwargs=True)
        try:
            if join is None or self.place is None:
                replay(index)
                kept.append(kept[1])
            else:
                kept.append(observed(module, "", self.place, partial(replay, index), sums=True).sums[join.sum])
        finally:
            handle.remove()
        return kept[0], kept[1], kept[2]

    def norm(self) -> nn.Module | None:
        """The batch normalization that alone reads the layer's output."""
        users = self.found.consumers(self.name)
        if len(users) != 1:
            return None
        user = self.segment.root.get_submodule(next(iter(users))) if users != {"(output)"} else None
        return user if isinstance(user, _BatchNorm) and user.affine and user.running_var is not None else None

    def join(self) -> _Join | None:
        """The sum that the layer's output goes into, unchanged but for a factor a channel; None without one."""
        block, place = self.segment.module, self.place
        layer = self.segment.layer(self.name)
        if place is None:
            return None
        layer = layer.point if isinstance(layer, Parts) else layer
        axis = 1 if isinstance(layer, (nn.Conv1d, nn.Conv2d)) else -1
        run = partial(self.segment.replay, 0)
        before = observed(block, "", place, run, sums=True).sums
        pushes: list[Tensor] = []

        def push(_layer: nn.Module, _args: Any, out: Any) -> Any:
            first = next(tensors_in(out))
            shape = [1] * first.dim()
            shape[axis] = first.shape[axis]
            pushes.append(first.float().std().clamp(min=1e-3).to(first.dtype) * torch.ones(shape, dtype=first.dtype))
            return filled(out, first - -pushes[0])  # a sum would be counted among the block's

        with ExitStack() as stack:
            stack.callback(layer.register_forward_hook(push).remove)
            after = observed(block, "", place, run, sums=True).sums
        for number in range(-len(before), 0):  # from the end: parts that were replaced lie before
            moved = after[number] - before[number]
            if moved.abs().max() > 0:
                same = moved.dim() == pushes[0].dim() and moved.shape[axis] == pushes[0].shape[axis]
                return _even(number, moved / pushes[0], axis) if same else None
        return None


@dataclass(frozen=True)
class _Join:
    """A sum by its number from the end, and the factors by which a layer's output comes into it.

    The factors' shape broadcasts with the sum's.
    """

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


def positions_of(layer: nn.Module, y: Tensor, keep: Tensor | None) -> Tensor:
    """An output as rows in the order of the layer's columns: ``(groups, positions, outputs of a group)``."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        flat = y.movedim(1, -1).flatten(0, -2)
        return flat.reshape(len(flat), layer.groups, -1).permute(1, 0, 2)
    if keep is not None and y.dim() >= 3 and y.shape[:2] == keep.shape:
        y = y[keep]
    return y.reshape(1, -1, y.shape[-1])
