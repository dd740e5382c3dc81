"""The blocks that one fitted layer can stand in for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import Fitted, StandInFacts
from compresskit.ops.calibration.trace import Trace, chain, trace
from compresskit.ops.globs import check_globs
from compresskit.ops.macs import count_macs
from compresskit.ops.shrinking import CalibrationData, ShrinkSettings
from compresskit.ops.substitute.recorder import Seen, observed
from compresskit.ops.substitute.stand_in import SIZES

_WIDEST = 8
"""Stride of a stand-in."""
_LEAST = 0.15
"""Share of a block's multiply-accumulates from which on a part of it is a half."""


@dataclass(frozen=True)
class Site:
    """A block or a half of one, and the layers that can stand in for it.

    Attributes:
        name: Of what is replaced.
        block: Name of the block that it is, or lies in.
        options: What would be recorded of each, by kind.
        shape: Of the block's input, for the batch that was looked at.
        macs: Of what is replaced, for that batch.
        whole: Of the block.
        costs: Multiply-accumulates of each option.
    """

    name: str
    block: str
    options: dict[Fitted, StandInFacts]
    shape: tuple[int, ...]
    macs: int
    whole: int
    costs: dict[Fitted, int]

    @property
    def place(self) -> int | str:
        """Where the input stands among the arguments."""
        return next(iter(self.options.values())).place

    @property
    def aim(self) -> str:
        """Name of the layer whose output a stand-in gives: its own, or one behind it."""
        return next(iter(self.options.values())).aim or self.name

    @property
    def ends(self) -> bool:
        """Whether a stand-in keeps what the original ends with."""
        fact = next(iter(self.options.values()))
        return fact.activation is not None or fact.norm is not None


@dataclass
class Places:
    """What there is to be substituted.

    Attributes:
        sites: In the order of their calls.
        skipped: Name of a block to why nothing can stand in for it.
        macs: Multiply-accumulates of the whole model.
        trace: Of the model.
    """

    sites: list[Site]
    skipped: dict[str, str]
    macs: int
    trace: Trace


@torch.no_grad()
def find(
    module: nn.Module, data: CalibrationData, settings: ShrinkSettings, kinds: Sequence[Fitted], *, halves: bool = False
) -> Places:
    """The blocks along a model's chain, with what could stand in for each.

    Args:
        module: In eval mode.
        data: How it is called.
        settings: With the globs of blocks.
        kinds: That may be used.
        halves: Look for the halves of blocks of tokens (attention, feed-forward) in the place of the blocks.

    Raises:
        UsageError: A glob matches no block.
        InputError: The model has no chain of blocks.
    """
    found = trace(module, partial(data.run, module))
    blocks = [n for n in chain(module, found) if any(True for _ in module.get_submodule(n).children())]
    if not blocks:
        raise InputError(
            "the model has no sequence of blocks that a layer could replace",
            "factorize replaces single layers instead",
        )
    counts = count_macs(module, data.example)
    finder = _Finder(module, data, found, counts, kinds)
    pieces = {block: finder.halves(block) if halves else [(block, None)] for block in blocks}
    check_globs([name for own in pieces.values() for name, _ in own], settings.globs)
    places = Places([], {}, sum(counts.values()), found)
    for block, own in pieces.items():
        if not own:
            places.skipped[block] = "no half of it takes and gives the same positions"
        for name, aim in own:
            made = settings.left_out(name) or finder.site(name, block, aim)
            if isinstance(made, Site):
                places.sites.append(made)
            else:
                places.skipped[name] = made
    return places


@dataclass(frozen=True)
class _Finder:
    """Looks at parts of a model while it is called."""

    module: nn.Module
    data: CalibrationData
    found: Trace
    counts: dict[str, int]
    kinds: Sequence[Fitted]

    def macs(self, *names: str) -> int:
        """Of what lies in some modules."""
        return sum(n for layer, n in self.counts.items() if any(_inside(layer, name) for name in names))

    def observed(self, name: str) -> Seen | None:
        """What a module is given and computes; None where it isn't called once with a tensor."""
        call = self.found.once().get(name)
        if call is None or call.first is None:
            return None
        return observed(self.module, name, call.first, lambda: self.data.run(self.module))

    def halves(self, block: str) -> list[tuple[str, str | None]]:
        """Parts of a block that give as they take, outermost first; and pairs of a layer and one behind it that do."""
        whole, kept = self.macs(block), list[tuple[str, str | None]]()
        once = self.found.once()
        for name in (n for n in once if n != block and _inside(n, block)):
            if any(_inside(name, known) for known, _ in kept) or not _LEAST * whole <= self.macs(name) < whole:
                continue
            seen = self.observed(name)
            if seen is None or not any(True for _ in self.module.get_submodule(name).children()):
                continue
            if seen.before.shape == seen.given.shape:
                kept.append((name, None))
            elif (aim := self._behind(name, block, seen.given.shape)) is not None:
                kept.append((name, aim))
        return kept

    def _behind(self, name: str, block: str, shape: torch.Size) -> str | None:
        """The Linear layer in a block that alone takes what a module gives, and gives back its width."""
        made = self.found.once()[name].outputs[:1]
        takers = [c.name for c in self.found.calls if c.inputs[:1] == made and not _inside(c.name, name)]
        linear = [n for n in takers if isinstance(self.module.get_submodule(n), nn.Linear) and _inside(n, block)]
        if len(linear) != 1 or not self.found.consumers(name) <= {linear[0]}:
            return None
        layer = self.module.get_submodule(linear[0])
        return linear[0] if getattr(layer, "out_features", 0) == shape[-1] else None

    def site(self, name: str, block: str, aim: str | None) -> Site | str:
        """A part of the model with its options, or why there are none."""
        seen, outer = self.observed(name), self.observed(block)
        behind = None if aim is None else self.observed(aim)
        if seen is None or outer is None:
            return "it isn't called once, with a tensor"
        part = self.module.get_submodule(name)
        common: dict[str, Any] = {"place": self.found.once()[name].first, "values": _values(seen.out), "aim": aim}
        if behind is not None:
            seen = replace(seen, before=behind.before, end=None)
        sizes = _sizes(part, seen)
        if isinstance(sizes, str):
            return sizes
        common |= _kept(part, seen)
        macs = self.macs(name, *([aim] if aim else []))
        options = self._options(part, seen, sizes, common, macs)
        if not options:
            return "a fitted layer of that kind would be no smaller than it"
        costs = {kind: cost for kind, (_, cost) in options.items()}
        facts = {kind: fact for kind, (fact, _) in options.items()}
        return Site(name, block, facts, tuple(outer.given.shape), macs, self.macs(block), costs)

    def _options(
        self, part: nn.Module, seen: Seen, sizes: tuple[bool, int], common: dict[str, Any], macs: int
    ) -> dict[Fitted, tuple[StandInFacts, int]]:
        pictures, stride = sizes
        inputs, outputs = _width(seen.given, pictures), _width(seen.before, pictures)
        positions = seen.before.numel() // outputs
        own = sum(p.numel() for p in part.parameters())
        options: dict[Fitted, tuple[StandInFacts, int]] = {}
        for kind in self.kinds:
            window = SIZES.get(kind, 1)
            weights = inputs * outputs * window * window
            if (kind in SIZES) == pictures and weights < own and positions * weights < macs:
                shape = [outputs, inputs, window, window] if pictures else [outputs, inputs]
                fact = StandInFacts(kind=kind, shape=shape, stride=stride, **common)
                options[kind] = fact, positions * weights
        return options


def _inside(name: str, holder: str) -> bool:
    return name == holder or name.startswith(f"{holder}.")


def _sizes(block: nn.Module, seen: Seen) -> tuple[bool, int] | str:
    """Whether pictures pass through a block, and by how much it shrinks them; or why it can't be told."""
    x, y = seen.given, seen.before
    if not (x.is_floating_point() and y.is_floating_point()):
        return "what passes through it is not floating point"
    if x.dim() == 4 and y.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in block.modules()):
        stride = -(-x.shape[2] // y.shape[2])
        fits = stride <= _WIDEST and all(-(-a // stride) == b for a, b in zip(x.shape[2:], y.shape[2:], strict=True))
        return (True, stride) if fits else "its output isn't its input at every n-th place"
    if x.dim() > 1 and x.shape[:-1] == y.shape[:-1]:
        return False, 1
    return "its output has other positions than its input"


def _width(x: Tensor, pictures: bool) -> int:
    return int(x.shape[1 if pictures else -1])


def _values(out: Any) -> int:
    return len(out) if isinstance(out, (tuple, list)) else 0


def _kept(block: nn.Module, seen: Seen) -> dict[str, Any]:
    """What of the block's last step a stand-in keeps."""
    if seen.end is None:
        return {}
    if seen.end.activation is not None:
        return {"activation": seen.end.activation}
    names = (n for n, m in block.named_modules() if n and m._parameters.get("weight") is seen.end.weight)
    return {"norm": next(names, None)}
