"""Channels cut out of a model: which, how many, and the layers behind them fitted again."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from compresskit.errors import InputError, UsageError, listing
from compresskit.ops.batchnorm import recalibrate
from compresskit.ops.calibration.activation_stream import Batch
from compresskit.ops.calibration.moments import Moments, collectable
from compresskit.ops.calibration.trace import trace
from compresskit.ops.globs import EXCLUDED, NOT_INCLUDED, check_globs, matches
from compresskit.ops.macs import count_macs, countable
from compresskit.ops.output_distance import OutputDistance, keep_nearest, split
from compresskit.ops.prune.allocate import Ranked, by_loss, by_share, isomorphic, narrowest_share, taken_back, widths_of
from compresskit.ops.prune.cost import Channels, Cost
from compresskit.ops.prune.counted_graph import EFFORT
from compresskit.ops.prune.cut import cut, places
from compresskit.ops.prune.dependencies import find_groups
from compresskit.ops.prune.elimination import refitted
from compresskit.ops.prune.graph import Group
from compresskit.ops.prune.least_squares import refit
from compresskit.ops.prune.score import FREE, Criterion, input_moments, losses, rank
from compresskit.ops.prune.trial import proven
from compresskit.ops.shrinking import CalibrationData, ShrinkSettings

Ranking = Literal["measured", "global", "isomorphic", "uniform"]
Unit = Literal["macs", "params", "channels"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PruneSettings(ShrinkSettings):
    """What the user asked for, apart from the target.

    Attributes:
        criterion: What a channel is worth.
        ranking: How groups are compared.
        limit_s: Longest time that torch-pruning may take, seconds; None is none.
        effort: Most comparisons that it may take.
    """

    criterion: Criterion = "reconstruction"
    ranking: Ranking = "measured"
    limit_s: float | None = None
    effort: int = EFFORT


def amounts(module: nn.Module, data: CalibrationData) -> dict[str, float]:
    """MACs of the example and parameters of a module."""
    return {
        "macs": float(sum(count_macs(module, data.example).values())),
        "params": float(sum(p.numel() for p in module.parameters())),
    }


@dataclass
class PrunePlan:
    """What can be cut of a model, and what each cut costs; :meth:`at` gives the cut for a target.

    Attributes:
        ranked: The groups, with their channels in the order in which they go.
        skipped: Layers whose outputs can't be cut, with the reason.
        moments: Of the layers that read the groups.
    """

    module: nn.Module
    settings: PruneSettings
    ranked: list[Ranked]
    skipped: dict[str, str]
    moments: dict[str, Moments] = field(default_factory=dict)
    losses: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def groups(self) -> list[Group]:
        """Those that can be cut."""
        return [r.group for r in self.ranked]

    def at(self, target: float, cost: Cost) -> tuple[dict[str, list[int]], float]:
        """The units that stay of each group, so that the cost is at most a share of the original's.

        Raises:
            UsageError: The target can't be met; says what can.
        """
        least = self.least(cost)
        if least > target + 1e-9:
            raise UsageError(
                f"the target {target:g} can't be met: with the narrowest widths {least:.3f} remains",
                f"give {least + 5e-4:.3f} or more"
                + (f", or `round_to` 1 in place of {self.settings.multiple}" if self.settings.multiple > 1 else ""),
            )
        if self.settings.ranking == "measured":
            allowed = {group.name: widths_of(group, self.settings.multiple) for group in self.groups}
            widths, share = by_loss(allowed, self.losses, cost, target)
        else:
            narrower = partial(by_share, self.ranked, self._classes(), self.settings.multiple)
            widths, _ = narrowest_share(narrower, cost, target)
            worth = {r.group.name: r.lost(self.settings.multiple) for r in self.ranked}
            widths, share = taken_back(widths, worth, cost, target)
        return {r.group.name: r.kept(widths[r.group.name]) for r in self.ranked}, share

    def least(self, cost: Cost) -> float:
        """The share thafter the strongest pruning widths leave."""
        return cost.share({r.group.name: widths_of(r.group, self.settings.multiple)[-1] for r in self.ranked})

    def _classes(self) -> dict[str, object]:
        if self.settings.ranking == "uniform":
            return {group.name: group.name for group in self.groups}
        if self.settings.ranking == "isomorphic":
            return {group.name: isomorphic(self.module, group) for group in self.groups}
        return {group.name: "" for group in self.groups}

    def cost(self, unit: Unit, base: Mapping[str, float], example: Batch) -> Cost:
        """What a target is a share of.

        Args:
            unit: What is counted.
            base: What the original has of it; what is missing is that of the module as it stands.
            example: An input, to count MACs.
        """
        if unit == "channels":
            return Channels(self.groups, base.get(unit))
        macs = count_macs(self.module, example) if unit == "macs" else None
        return Cost(self.module, self.groups, macs, base.get(unit))


def plan(module: nn.Module, data: CalibrationData, settings: PruneSettings, progress: Progress) -> PrunePlan:
    """Find out what can be cut, and in which order.

    Args:
        module: In eval mode; not changed.
        data: What it is run on.
        settings: What the user asked for.
        progress: Called from time to time as ``progress(what, done, total)``.

    Raises:
        UsageError: A glob matches nothing, or a criterion needs data.
        InputError: Nothing can be cut.
    """
    if not data.batches and (settings.criterion not in FREE or settings.ranking == "measured"):
        raise UsageError("ranking the channels needs data", "give `data` FILE, or `importance` l2 `ranking` isomorphic")
    groups, skipped = _cuttable(module, data, settings)
    moments = input_moments(module, groups, data) if data.batches else {}
    ranked = rank(module, groups, settings.criterion, data, moments, progress)
    result = PrunePlan(module, settings, ranked, skipped, moments)
    if settings.ranking == "measured":
        few = replace(data, batches=data.batches[: _FEW // _size(data)])
        result.losses = losses(module, ranked, settings.multiple, few, moments, progress)
    return result


def _cuttable(module: nn.Module, data: CalibrationData, settings: PruneSettings) -> tuple[list[Group], dict[str, str]]:
    """The groups that may be cut and were proven by a trial, and why the other layers can't be."""
    found, skipped = find_groups(module, data.run, limit_s=settings.limit_s, effort=settings.effort)
    wanted, left = _wanted(module, found, settings)
    groups, bad = proven(module, data.run, wanted, settings.seed)
    for group in groups:
        if len(widths_of(group, settings.multiple)) == 1:
            width = group.units * group.per_unit
            bad[group.name] = f"its {width} channels are too few for a multiple of {settings.multiple}"
    layers = {group.name: [m.layer for m in group.of("out")] for group in wanted}
    skipped |= left | {layer: reason for name, reason in bad.items() for layer in layers[name]}
    groups = [group for group in groups if group.name not in bad]
    if not groups:
        reasons = listing([f"{layer}: {reason}" for layer, reason in skipped.items()], 1) if skipped else "no layers"
        raise InputError(
            f"no channels of this model can be cut ({reasons})",
            "prune whole blocks (`method` depth), or single weights (`method` magnitude)",
        )
    return groups, skipped


_FEW = 256
"""Samples that narrower groups are measured on."""


def _size(data: CalibrationData) -> int:
    return min(_FEW, len(next(iter(data.batches[0].values()))))


def _wanted(module: nn.Module, groups: Sequence[Group], settings: PruneSettings) -> tuple[list[Group], dict[str, str]]:
    """The groups that the user's globs let through, and why not the others."""
    names = [name for name, layer in module.named_modules() if name and countable(layer)]
    check_globs(names, settings.globs)
    wanted: list[Group] = []
    left: dict[str, str] = {}
    for group in groups:
        given = [m.layer for m in group.of("out")]
        shut = next((n for n in given if matches(n, settings.exclude)), None)
        if shut is not None:
            left |= {n: EXCLUDED if n == shut else f"it is coupled with '{shut}', which is excluded" for n in given}
        elif all(map(settings.left_out, given)):
            left |= dict.fromkeys(given, NOT_INCLUDED)
        else:
            wanted.append(group)
    return wanted, left


@torch.no_grad()
def apply(
    module: nn.Module, chosen: PrunePlan, kept: Mapping[str, list[int]], data: CalibrationData, progress: Progress
) -> dict[str, Any]:
    """Cut a module in place, and fit again what is left where there are data.

    Args:
        module: The plan's module.
        chosen: The plan.
        kept: Group name to the units that stay.
        data: What it is run on.
        progress: Called from time to time as ``progress(what, done, total)``.

    Returns:
        Facts: the output's distance from the original's before and after the refit, on samples that it didn't use where
        there are enough; and which was ``kept``: the bare cut, fitted layers, or those with batch normalizations
        re-estimated too, whatever is nearest.
    """
    groups = [g for g in chosen.groups if len(kept[g.name]) < g.units]
    fits = chosen.settings.refit and bool(data.batches) and bool(groups)
    original = copy.deepcopy(module) if fits else module
    stay = places(module, groups, kept)
    cut(module, groups, kept)
    if not fits:
        return {}
    used, apart = split(data.batches)
    calls = _calls(original, data)
    error = OutputDistance(original, apart, data.forward, scores=data.scores)
    before = error(module)
    fitted = copy.deepcopy(original)
    _make_up(fitted, groups, kept, chosen.moments)
    cut(fitted, groups, kept)
    refit(fitted, original, stay, calls, replace(data, batches=used), progress)
    settled = copy.deepcopy(fitted)
    recalibrate(settled, data.forward, used)
    tried = {"cut": (before, module), "fitted": (error(fitted), fitted), "recalibrated": (error(settled), settled)}
    return keep_nearest(module, tried)


def _make_up(
    module: nn.Module, groups: Sequence[Group], kept: Mapping[str, list[int]], moments: dict[str, Moments]
) -> None:
    """Fit the layers that read one group each on the original's inputs: where the refit on the cut model's starts."""
    readers = Counter(m.layer for group in groups for m in group.of("in"))
    for group in groups:
        for name, weight in refitted(module, group, moments, kept[group.name]).items():
            if readers[name] == 1:
                module.get_submodule(name).get_parameter("weight").copy_(weight)


def _calls(module: nn.Module, data: CalibrationData) -> dict[str, int]:
    """The layers that can be fitted, in the order of their calls, and how often each is called."""
    counts: dict[str, int] = {}
    for call in trace(module, partial(data.run, module)).calls:
        if collectable(module.get_submodule(call.name)):
            counts[call.name] = counts.get(call.name, 0) + 1
    return counts
