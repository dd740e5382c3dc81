"""Blocks with the layers that could stand in for them: each fitted on the original's inputs, and what is lost by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.facts.substitute import Fitted, StandInFacts
from compresskit.ops.calibration.activation_stream import Batch, replaced
from compresskit.ops.calibration.moments import columns_of
from compresskit.ops.output_distance import OutputDistance, split
from compresskit.ops.packed.modules import set_module
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.normal_equations import NormalEquations
from compresskit.ops.substitute.recorder import Seen, watching
from compresskit.ops.substitute.sites import Site
from compresskit.ops.substitute.stand_in import StandIn, put

Progress = Callable[[str, int, int], None]
_FEW = 64
"""Samples on which the model's output is compared for each candidate."""


@dataclass(frozen=True)
class Candidate:
    """A block and one layer that could stand in for it.

    Attributes:
        site: The block.
        kind: Of the layer.
        stand_in: Fitted.
        loss: Distance of the model's output with it alone.
        time: Share of the block's time; None where it wasn't measured.
    """

    site: Site
    kind: Fitted
    stand_in: StandIn
    loss: float
    time: float | None = None

    @property
    def name(self) -> str:
        """Of the block."""
        return self.site.name

    @property
    def whole(self) -> float:
        """Multiply-accumulates of what is timed."""
        return float(self.site.whole)

    @property
    def saved(self) -> float:
        """Multiply-accumulates that it saves."""
        return float(self.site.macs - self.site.costs[self.kind])

    @property
    def fact(self) -> StandInFacts:
        """What is recorded."""
        return replace(self.site.options[self.kind], loss=_short(self.loss), time=_short(self.time))


def _short(value: Any) -> Any:
    return None if value is None else float(f"{value:.4g}")


class Fit:
    """The least-squares problem of one candidate."""

    def __init__(self, block: nn.Module, fact: StandInFacts) -> None:
        self.stand_in = StandIn(block, fact)
        self.sums = NormalEquations()

    def add(self, given: Tensor, target: Tensor, keep: Tensor | None) -> None:
        """Take in what the stand-in is given and what it should give, padding left out."""
        layer = self.stand_in.layer
        if isinstance(layer, nn.Conv2d):
            aim = target.permute(0, 2, 3, 1)
        else:
            aim = target[keep] if keep is not None and target.shape[:2] == keep.shape else target
        self.sums.add(columns_of(layer, given, keep), aim.reshape(1, -1, aim.shape[-1]))

    def solved(self) -> StandIn:
        """The stand-in with the solution, which damping pulls towards the identity where the widths allow it."""
        weight = self.stand_in.layer.get_parameter("weight")
        start = torch.zeros_like(weight)
        if weight.shape[0] == weight.shape[1]:
            middle = weight[0, 0].numel() // 2
            start.flatten(2)[..., middle].fill_diagonal_(1) if weight.dim() > 2 else start.fill_diagonal_(1)
        return self.stand_in.fill(*self.sums.solve(start.flatten(1).unsqueeze(0)))


def mask_of(batch: Batch) -> Tensor | None:
    """True for the tokens of a batch that count; None where there is no padding."""
    mask = batch.get("attention_mask")
    return mask.bool() if mask is not None and mask.dim() == 2 else None


@torch.no_grad()
def candidates(module: nn.Module, sites: Sequence[Site], data: CalibrationData, progress: Progress) -> list[Candidate]:
    """Fit each candidate alone, and measure what the model's output loses by it.

    Args:
        module: In eval mode; not changed.
        sites: The blocks.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.
    """
    used, held = split(data.batches)
    stand_ins = fitted(module, sites, replace(data, batches=used), progress)
    away = OutputDistance(module, few_of(held), data.forward, scores=data.scores)
    where = {s.name: s for s in sites}
    found = []
    for done, ((name, kind), stand_in) in enumerate(stand_ins.items(), 1):
        candidate = Candidate(where[name], kind, stand_in, 0.0)
        with standing_in(module, [candidate]):
            found.append(replace(candidate, loss=away(module)))
        progress("measure stand-ins", done, len(stand_ins))
    return found


@torch.no_grad()
def fitted(
    module: nn.Module, sites: Sequence[Site], data: CalibrationData, progress: Progress
) -> dict[tuple[str, Fitted], StandIn]:
    """Fit each stand-in alone, on what the original gives its block; by the block's name and the kind of the stand-in.

    Args:
        module: In eval mode; not changed.
        sites: The blocks.
        data: With batches.
        progress: Called as ``progress(what, done, total)``.
    """
    fits = {(s.name, kind): Fit(module.get_submodule(s.name), fact) for s in sites for kind, fact in s.options.items()}
    for done, batch in enumerate(data.batches, 1):
        with _fitting(module, sites, fits, mask_of(batch)):
            data.forward(module, batch)
        progress("fit stand-ins", done, len(data.batches))
    return {key: fit.solved() for key, fit in fits.items()}


@contextmanager
def _fitting(
    module: nn.Module, sites: Sequence[Site], fits: Mapping[tuple[str, Fitted], Fit], keep: Tensor | None
) -> Iterator[None]:
    """Adds what passes through a model to the fits of all candidates, for a while."""
    given: dict[str, Tensor] = {}

    def take(site: Site, seen: Seen) -> None:
        given[site.name] = seen.given
        if site.aim == site.name:
            add(site, seen.before)

    def add(site: Site, target: Tensor) -> None:
        for kind in site.options:
            fits[site.name, kind].add(given[site.name], target, keep)

    def hook(site: Site, _layer: nn.Module, _args: Any, out: Tensor) -> None:
        add(site, out)

    where = {s.name: s for s in sites}
    with ExitStack() as stack:
        for site in sites:
            if site.aim != site.name:
                layer = module.get_submodule(site.aim)
                stack.callback(layer.register_forward_hook(partial(hook, site)).remove)
        make = partial(_watched, module, where, take)
        stack.enter_context(replaced(module, list(where), make))
        yield


def _watched(module: nn.Module, where: Mapping[str, Site], take: Callable[[Site, Seen], None], name: str) -> Any:
    return watching(module, where[name].place, partial(take, where[name]), name)


def few_of(batches: Sequence[Batch]) -> list[Batch]:
    """As many samples as the model's output is compared on for each candidate."""
    rows = len(next(iter(batches[0].values())))
    return [{name: tensor[:_FEW] for name, tensor in batch.items()} for batch in batches[: max(1, _FEW // rows)]]


@contextmanager
def standing_in(module: nn.Module, chosen: Sequence[Candidate]) -> Iterator[None]:
    """A module with stand-ins in the place of some of its parts for a while."""
    names = [name for c in chosen for name in {c.site.name, c.site.aim}]
    before = {name: module.get_submodule(name) for name in names}
    try:
        for c in chosen:
            put(module, c.site.name, c.stand_in, c.fact.aim)
        yield
    finally:
        for name, old in before.items():
            set_module(module, name, old)
