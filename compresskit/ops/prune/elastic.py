"""A model of which parts work alone: narrower layers and fewer blocks, left out for a while or taken out for good."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from compresskit.errors import InputError, UsageError, listing
from compresskit.facts.supernet import ElasticFacts
from compresskit.ops.prune.allocate import Ranked, widths_of
from compresskit.ops.prune.cut import Places, cut, narrowed, places
from compresskit.ops.prune.dependencies import find_groups
from compresskit.ops.prune.depth import Block, blocks_of, distances, drop_proven, skipping
from compresskit.ops.prune.graph import Group, Member
from compresskit.ops.prune.score import Criterion, input_moments, rank
from compresskit.ops.prune.trial import apart, proven
from compresskit.ops.prune.units import columns_of
from compresskit.ops.prune.width import Part, any_heads, neurons
from compresskit.ops.shrinking import CalibrationData

_EPSILON = 1e-9
_WIDE = 512
"""Units of a group from which on what each is worth is told by activations alone: elimination would take minutes."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Subnet:
    """How much of a model is used.

    Attributes:
        width: Share of the channels of each group, above 0 to 1; rounded up.
        drop: Blocks that are left out.
    """

    width: float = 1.0
    drop: int = 0


@dataclass
class Elastic:
    """What can be left out of a module, and in which order it goes.

    Attributes:
        ranked: The groups of channels, with their units in the order in which they go.
        blocks: Those that can be left out, in the order in which they go.
        multiple: Channels stay in multiples of this.
        told: Names of groups whose width a transformers config tells, all of them one.
        size: Its name for that width.
    """

    ranked: list[Ranked]
    blocks: list[Block]
    multiple: int
    told: tuple[str, ...] = ()
    size: str = ""
    _places: dict[tuple[int, ...], dict[str, Places]] = field(default_factory=dict, repr=False)

    @property
    def groups(self) -> list[Group]:
        """The groups of channels."""
        return [r.group for r in self.ranked]

    def kept(self, width: float) -> dict[str, list[int]]:
        """The units that stay of each group at a share of its channels."""
        return {r.group.name: r.kept(self._units(r.group, width)) for r in self.ranked}

    @property
    def in_config(self) -> Elastic:
        """The part of this that a transformers config can tell."""
        return replace(self, ranked=[r for r in self.ranked if r.group.name in self.told], _places={})

    def gone(self, drop: int) -> list[str]:
        """The names of the blocks that go first."""
        return [block.name for block in self.blocks[:drop]]

    def _units(self, group: Group, width: float) -> int:
        return min(w for w in widths_of(group, self.multiple) if w >= width * group.units - _EPSILON)

    @contextmanager
    def only(self, module: nn.Module, subnet: Subnet) -> Iterator[None]:
        """The module as a subnet for a while; gradients reach the whole parameters."""
        key = tuple(self._units(group, subnet.width) for group in self.groups)
        if key not in self._places:
            self._places[key] = places(module, self.groups, self.kept(subnet.width))
        with narrowed(module, self._places[key]), skipping(module, self.blocks[: subnet.drop]):
            yield

    def facts(self, least: float) -> ElasticFacts:
        """What a card records."""
        order = {r.group.name: list(r.order) for r in self.ranked}
        return ElasticFacts(order=order, blocks=self.gone(len(self.blocks)), least=least, multiple=self.multiple)


@dataclass(frozen=True)
class ElasticSettings:
    """What the user asked for.

    Attributes:
        multiple: Channels stay in multiples of this.
        keep_blocks: Blocks that stay at least; None is half of them.
        seed: Of the channels that a trial cut takes.
        transformer: A config of transformers tells the module's sizes.
        heads: Heads of a transformer's attention go too; no config tells of them.
    """

    multiple: int = 8
    keep_blocks: int | None = None
    seed: int = 0
    transformer: bool = False
    heads: bool = False


def elastic(module: nn.Module, data: CalibrationData, settings: ElasticSettings, progress: Progress) -> Elastic:
    """Find out what can be left out of a module, and what goes first: what its outputs on the data miss least.

    Args:
        module: In eval mode; not changed.
        data: With batches.
        settings: What the user asked for.
        progress: Called from time to time as ``progress(what, done, total)``.

    Raises:
        InputError: Nothing can be left out.
        UsageError: More blocks are to stay than there are.
    """
    groups, told, size = _groups(module, data, settings)
    groups = proven(module, data.run, groups, settings.seed)[0]
    if not set(told) <= {group.name for group in groups}:  # a config has one width for all layers
        groups, told = [group for group in groups if group.name not in told], ()
    groups = [group for group in groups if len(widths_of(group, settings.multiple)) > 1]
    moments = input_moments(module, groups, data)
    ranked: list[Ranked] = []
    for group in groups:
        criterion: Criterion = "reconstruction" if group.units <= _WIDE else "activation"
        ranked += rank(module, [group], criterion, data, moments, progress)
    blocks = _blocks(module, data, settings.keep_blocks, progress)
    if not ranked and not blocks:
        raise InputError(
            "neither channels nor blocks of this model can be removed",
            "its channels are coupled with its outputs or are too few: see `round_to`",
        )
    return Elastic(ranked, blocks, settings.multiple, told if ranked else (), size)


def again(module: nn.Module, data: CalibrationData, facts: ElasticFacts, settings: ElasticSettings) -> Elastic:
    """What :func:`elastic` found, of the module that was trained since; the facts decide what the settings would.

    Raises:
        InputError: The facts aren't of this module.
    """
    everything = replace(settings, heads=True)
    groups, told, size = _groups(module, data, everything) if facts.order else ([], (), "")
    by_name = {group.name: group for group in groups}
    known = {name: len(units) for name, units in facts.order.items()}
    wrong = [name for name, units in known.items() if name not in by_name or by_name[name].units != units]
    blocks = {block.name: block for block in blocks_of(module, data.example, data.forward)} if facts.blocks else {}
    wrong += [name for name in facts.blocks if name not in blocks]
    if wrong:
        raise InputError(
            f"the supernet's card lists other channels or blocks than this model has: {listing(wrong)}",
            "check `arch` and `arch_args`",
        )
    ranked = [Ranked(by_name[name], order, ()) for name, order in facts.order.items()]
    known_told = tuple(name for name in told if name in facts.order)
    return Elastic(ranked, [blocks[name] for name in facts.blocks], facts.multiple, known_told, size)


def take(module: nn.Module, found: Elastic, subnet: Subnet, data: CalibrationData) -> dict[str, Any]:
    """Cut a module down to a subnet, in place; blocks behind those that are dropped are numbered anew.

    Returns:
        The rows of blocks that lost some, as :func:`~compresskit.ops.prune.depth.drop` tells them.

    Raises:
        InputError: The model's code counts on its widths or on all its blocks. The module is spoilt then.
    """
    kept = found.kept(subnet.width)
    reason = apart(module, data.run, found.groups, kept)
    if reason:
        raise InputError(f"no narrower model can be taken out of this one: {reason}", "train the supernet again")
    cut(module, found.groups, kept)
    gone = found.gone(subnet.drop)
    return drop_proven(module, found.blocks, gone, data.example, data.forward) if gone else {}


def _groups(
    module: nn.Module, data: CalibrationData, settings: ElasticSettings
) -> tuple[list[Group], tuple[str, ...], str]:
    """Channels that can go together, names of those whose number a transformers config tells, and what it calls it."""
    if not settings.transformer:
        return find_groups(module, data.run)[0], (), ""
    try:
        size, parts = neurons(module, data.example, data.forward)
    except InputError:
        size, parts = "", []
    groups = list(map(_as_group, parts))
    told = tuple(group.name for group in groups)
    if settings.heads:
        groups += map(_as_group, any_heads(module, data.example, data.forward))
    return groups, told, size


def _as_group(part: Part) -> Group:
    def member(layer: str, size: int, out: bool) -> Member:
        units = tuple(tuple(columns_of([unit], size).tolist()) for unit in range(part.units))
        return Member(layer, "out" if out else "in", units)

    makers = [member(name, size, True) for name, size in part.makers.items()]
    return Group(makers[0].layer, (*makers, member(part.reader, part.size, False)))


def _blocks(module: nn.Module, data: CalibrationData, keep: int | None, progress: Progress) -> list[Block]:
    """The blocks that can go, those first that the output misses least; each is chosen without the ones before it."""
    try:
        blocks = blocks_of(module, data.example, data.forward)
    except InputError:
        blocks = []
    left = -(-len(blocks) // 2) if keep is None else keep
    if keep is not None and keep > len(blocks):
        raise UsageError(f"`min_depth` {keep}: the model has {len(blocks)} blocks that can be dropped")
    gone: list[str] = []
    for _ in range(len(blocks) - left):
        found = distances(module, blocks, gone, data.batches, data.forward, scores=data.scores, progress=progress)
        gone.append(min(found, key=found.__getitem__))
    try:
        if gone:
            drop_proven(copy.deepcopy(module), blocks, gone, data.example, data.forward)
    except InputError:
        return []
    by_name = {block.name: block for block in blocks}
    return [by_name[name] for name in gone]
