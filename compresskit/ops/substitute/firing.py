"""Units that never fire on samples are removed, and those that always fire are led past their ReLU.

A unit is a channel between layers. Where all that the layers behind it ever take of it is 0, it goes with its weights.
Where it is always above 0 its ReLU does nothing, and the layers before and behind it are one layer for it: a bypass,
where that takes fewer products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compresskit.errors import InputError
from compresskit.facts.substitute import BypassFacts, FiringFacts, FoldedFacts
from compresskit.ops.calibration.activation_stream import Batch
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.prune.cut import cut, mask, places
from compresskit.ops.prune.dependencies import find_groups
from compresskit.ops.prune.graph import Group, Member, axis_size
from compresskit.ops.prune.replay import facts_of, narrow, widths
from compresskit.ops.prune.same import same
from compresskit.ops.prune.trial import proven
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.structure.samples import count, halved, parted
from compresskit.ops.structure.units import upper_bound
from compresskit.ops.substitute import bypass as bypassing
from compresskit.ops.substitute.bypass import Pair, bypass, pairs
from compresskit.ops.substitute.ranges import Range, by_sample, over, reachable, within

Units = dict[str, list[int]]
"""Units, ascending, by the name of their group or of the layer behind them."""


@dataclass
class Fired:
    """What was done to a module.

    Attributes:
        cut: What is recorded of each layer that lost units.
        bypasses: Of each layer that has a bypass.
        left: Layers whose units stay, with the reason.
        found: What is recorded of the units.
    """

    cut: dict[str, dict[str, Any]]
    bypasses: dict[str, BypassFacts]
    left: dict[str, str]
    found: FiringFacts


@dataclass(frozen=True)
class _Steady:
    """Units that do the same in all samples.

    Attributes:
        never: By group.
        always: By the layer that takes them.
    """

    never: Units
    always: Units

    @property
    def count(self) -> int:
        return sum(map(len, (*self.never.values(), *self.always.values())))

    def also(self, other: _Steady) -> _Steady:
        """Those that are steady in both."""
        return _Steady(_both(self.never, other.never), _both(self.always, other.always))


def _both(one: Units, two: Units) -> Units:
    found = {name: [u for u in units if u in set(two.get(name, []))] for name, units in one.items()}
    return {name: units for name, units in found.items() if units}


@dataclass
class _Taken:
    """Count, sums and extremes of what each unit's ReLU takes."""

    count: int = 0
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))
    low: Tensor = field(default_factory=lambda: torch.tensor(torch.inf))
    high: Tensor = field(default_factory=lambda: torch.tensor(-torch.inf))

    def add(self, layer: nn.Module, _args: Any, out: Tensor) -> None:
        """Take a layer's output; a forward hook."""
        rows = out.detach().movedim(1 if isinstance(layer, _ConvNd) else -1, -1).flatten(0, -2).double()
        self.count += len(rows)
        self.first, self.second = self.first + rows.sum(0), self.second + rows.square().sum(0)
        self.low, self.high = torch.minimum(self.low, rows.amin(0)), torch.maximum(self.high, rows.amax(0))

    def near(self, margin: float) -> set[int]:
        """The units that come within a margin of 0, or cross it."""
        mean = self.first / max(1, self.count)
        reach = margin * (self.second / max(1, self.count) - mean.square()).clamp_min(0).sqrt()
        found = (self.low - reach <= 0) & (self.high + reach > 0)
        return set(found.nonzero().flatten().tolist()) if found.dim() else set()


@dataclass
class _Model:
    """A module, and where its units are."""

    module: nn.Module
    data: CalibrationData
    groups: list[Group]
    pairs: list[Pair]
    left: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """Those that take units."""
        readers = [m.layer for group in self.groups for m in group.of("in")]
        return list(dict.fromkeys((*readers, *(pair.second for pair in self.pairs))))

    def by_sample(self, batches: Sequence[Batch]) -> Iterator[dict[str, Range]]:
        return by_sample(self.module, self.layers, batches, self.data.forward)

    def on(self, batches: Sequence[Batch]) -> _Steady:
        """The units that are steady on samples."""
        return self.steady(over(self.by_sample(batches)))

    def far(self, steady: _Steady, batches: Sequence[Batch], margin: float) -> _Steady:
        """Those whose ReLU takes nothing within a margin of 0, in standard deviations of what it takes.

        Only of units between two layers with a ReLU; the others stay as they are.
        """
        seen = {pair.first: _Taken() for pair in self.pairs}
        with ExitStack() as stack:
            for name, taken in seen.items():
                layer = self.module.get_submodule(name)
                stack.callback(layer.register_forward_hook(taken.add).remove)
            for batch in batches:
                self.data.forward(self.module, batch)
        near = {pair.second: seen[pair.first].near(margin) for pair in self.pairs}
        readers = {group.name: [m.layer for m in group.of("in") if m.layer in near] for group in self.groups}

        def kept(units: list[int], layers: Iterable[str]) -> list[int]:
            return [unit for unit in units if not any(unit in near[layer] for layer in layers)]

        never = {name: kept(units, readers[name]) for name, units in steady.never.items()}
        always = {name: kept(units, [name]) for name, units in steady.always.items()}
        return _Steady(*({n: units for n, units in found.items() if units} for found in (never, always)))

    def steady(self, ranges: Mapping[str, Range]) -> _Steady:
        """Units that are 0 in all that layers take, or above 0 and below the limit of their ReLU."""
        never, always = Units(), Units()
        for group in self.groups:
            zeros = [self._zeros(member, ranges) for member in group.of("in")]
            units = torch.stack(zeros).all(0).nonzero().flatten().tolist() if zeros else []
            if units:
                never[group.name] = units[: group.units - 1]  # one stays: a layer without any can't be
        for pair in self.pairs:
            low, high = ranges.get(pair.second, (torch.zeros(1), torch.zeros(1)))
            if units := ((low > 0) & (high < pair.limit)).nonzero().flatten().tolist():
                always[pair.second] = units
        return _Steady(never, always)

    def _zeros(self, member: Member, ranges: Mapping[str, Range]) -> Tensor:
        """Which units a layer always takes as 0; of a grouped convolution in all groups."""
        layer, units = self.module.get_submodule(member.layer), len(member.places)
        if member.layer not in ranges:
            return torch.zeros(units, dtype=torch.bool)
        low, high = ranges[member.layer]
        groups = layer.groups if isinstance(layer, _ConvNd) else 1
        zero = ((low == 0) & (high == 0)).reshape(groups, -1).all(0).repeat(groups)
        owner = torch.arange(units).repeat_interleave(torch.tensor([len(part) for part in member.places]))
        bent = owner[~zero[_channels(member, range(units))]]
        return torch.bincount(bent, minlength=units) == 0

    def deviating(self, known: _Steady, batches: Sequence[Batch]) -> int:
        """In how many samples any of the units does otherwise."""
        readers = [(member, known.never.get(group.name, [])) for group in self.groups for member in group.of("in")]
        silent = [(member.layer, _channels(member, units)) for member, units in readers if units]
        limits = {pair.second: pair.limit for pair in self.pairs}
        found = 0
        for ranges in self.by_sample(batches):
            wrong = []
            for name, at in silent:
                low, high = ranges[name]
                wrong.append(((low[:, at] != 0) | (high[:, at] != 0)).any(1))
            for name, units in known.always.items():
                low, high = ranges[name]
                wrong.append(((low[:, units] <= 0) | (high[:, units] >= limits[name])).any(1))
            found += int(torch.stack(wrong).any(0).sum()) if wrong else 0
        return found


def _channels(member: Member, units: Iterable[int]) -> Tensor:
    """A layer's channels that belong to units."""
    return torch.tensor([place for unit in units for place in member.places[unit]], dtype=torch.long)


@torch.no_grad()
def without(
    module: nn.Module, data: CalibrationData, skip: Callable[[str], str], seed: int, progress: Callable[..., None],
    *, margin: float = 0.0,
) -> Fired:  # fmt: skip
    """Remove units that never fire, and lead those that always fire past their ReLU, in place.

    They are found on most of the samples. Those that do otherwise in half of the others stay; the other half tells how
    often the rest do.

    Args:
        module: In eval mode.
        data: With batches.
        skip: Why a layer is to stay as it is; empty where it needn't.
        seed: Of the trial of cuts.
        progress: Called as ``progress(what, done, total)``.
        margin: How far from 0 what a unit's ReLU takes must stay, in standard deviations; 0 asks for its side alone.
    """
    used, others = parted(data.batches)
    checked, told = halved(others)
    model = _units_of(module, data, skip, seed)
    progress("look at units", 1, 3)
    found = model.on(used)
    if margin:
        found = model.far(found, used, margin)
    steady = found.also(model.on(checked))
    returned = found.count - steady.count
    steady = replace(steady, never=_harmless(model, steady.never, used[0]))
    sure = steady.also(model.steady(reachable(module, model.layers, used)))
    progress("look at units", 2, 3)
    original = replace(model, module=copy.deepcopy(module))
    narrower, bypasses = _applied(model, steady)
    steady = replace(steady, always={name: units for name, units in steady.always.items() if name in bypasses})
    deviating, samples = original.deviating(steady, told), count(told)
    facts = FiringFacts(
        never=sum(map(len, steady.never.values())), always=sum(map(len, steady.always.values())),
        units=sum(group.units for group in model.groups), returned=returned, proven=steady.also(sure).count,
        samples=count(used), held_out=samples,
        within=sum(int(within(used, batch).sum()) for batch in told), deviating=deviating,
        bound=round(upper_bound(deviating, samples), 5),
        change=float(f"{max(_change(data, original.module, module, batch) for batch in told):.3g}"),
    )  # fmt: skip
    progress("look at units", 3, 3)
    return Fired(narrower, bypasses, model.left, facts)


def _units_of(module: nn.Module, data: CalibrationData, skip: Callable[[str], str], seed: int) -> _Model:
    """Where the units of a module are that may go, and why others may not."""
    between, left = pairs(module)
    try:
        groups, skipped = find_groups(module, data.run)
    except InputError as error:  # it can't be followed: a bypass may still be possible
        groups, skipped = [], {"": error.message}
    wanted = []
    for group in groups:
        why = next(filter(None, (skip(member.layer) for member in group.of("out"))), "") or _misplaced(module, group)
        if why:
            left[group.name] = why
        else:
            wanted.append(group)
    good, bad = proven(module, data.run, wanted, seed)
    between = [pair for pair in between if not skip(pair.first) and not skip(pair.second)]
    return _Model(module, data, good, between, left | bad | {n: why for n, why in skipped.items() if n})


def _misplaced(module: nn.Module, group: Group) -> str:
    """Why a group isn't what it seems: a shortcut filled up with zeros moves channels; empty for others."""
    for member in group.members:
        size = axis_size(module.get_submodule(member.layer), member.axis)
        if any(place >= size for part in member.places for place in part):
            return "its channels pass by a shortcut that is filled up with zeros"
    return ""


def _harmless(model: _Model, never: Units, batch: Batch) -> Units:
    """The units without which the output on some samples is the same: something else might read them."""
    wanted = model.data.forward(model.module, batch)

    def fine(units: Units) -> bool:
        silenced = copy.deepcopy(model.module)
        mask(silenced, model.groups, _kept(model, units))
        return same(wanted, model.data.forward(silenced, batch))

    if not never or fine(never):
        return never
    found = {name: units for name, units in never.items() if fine({name: units})}
    model.left |= dict.fromkeys(never.keys() - found.keys(), "its units are read by more than layers")
    return found


def _kept(model: _Model, gone: Units) -> Units:
    return {g.name: sorted(set(range(g.units)) - set(gone[g.name])) for g in model.groups if g.name in gone}


def _applied(model: _Model, steady: _Steady) -> tuple[dict[str, dict[str, Any]], dict[str, BypassFacts]]:
    """What is recorded of layers that lost units, and of bypasses."""
    kept, before = _kept(model, steady.never), widths(model.module)
    stay = places(model.module, model.groups, kept)
    cut(model.module, model.groups, kept)
    narrower = facts_of(model.module, before, [])
    bypasses: dict[str, BypassFacts] = {}
    taken: set[str] = set()
    for pair in model.pairs:
        units, side = steady.always.get(pair.second, []), stay.get(pair.second)
        if not units:
            continue
        if side is not None and side.into is not None:
            numbers = {old: new for new, old in enumerate(side.into.tolist())}
            units = [numbers[unit] for unit in units]
        free = taken.isdisjoint((pair.first, pair.second))
        made = bypass(model.module, pair, units) if free else "a layer beside it has a bypass"
        if isinstance(made, str):
            model.left[pair.second] = made
        else:
            bypasses[pair.second] = made
            taken |= {pair.first, pair.second}
    return narrower, bypasses


def _change(data: CalibrationData, one: nn.Module, two: nn.Module, batch: Batch) -> float:
    """Largest relative change of an output."""
    pairs = zip(tensors_in(data.forward(one, batch)), tensors_in(data.forward(two, batch)), strict=True)
    floats = [(a.double(), b.double()) for a, b in pairs if a.is_floating_point()]
    return max((float((a - b).norm() / a.norm().clamp(min=1e-30)) for a, b in floats), default=0.0)


def replay(module: nn.Module, layers: Mapping[str, FoldedFacts]) -> None:
    """Give a freshly built architecture, its layers put together, the same units, in place; values are loaded later.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    for name, fact in layers.items():
        if fact.cut is not None:
            narrow(module, name, fact.cut)
    for name, fact in layers.items():
        if fact.bypass is not None:
            bypassing.replay(module, name, fact.bypass)
