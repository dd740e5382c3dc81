"""The blocks that one fitted layer can stand in for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Site:
    """A block, and the layers that can stand in for it.

    Attributes:
        name: Of the block.
        options: What would be recorded of each, by kind.
        shape: Of its input, for the batch that was looked at.
        macs: Of the block, for that batch.
        costs: Multiply-accumulates of each option.
    """

    name: str
    options: dict[Fitted, StandInFacts]
    shape: tuple[int, ...]
    macs: int
    costs: dict[Fitted, int]

    @property
    def place(self) -> int | str:
        """Where its input stands among the arguments."""
        return next(iter(self.options.values())).place


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
def find(module: nn.Module, data: CalibrationData, settings: ShrinkSettings, kinds: Sequence[Fitted]) -> Places:
    """The blocks along a model's chain, with what could stand in for each.

    Args:
        module: In eval mode.
        data: How it is called.
        settings: With the globs of blocks.
        kinds: That may be used.

    Raises:
        UsageError: A glob matches no block.
        InputError: The model has no chain of blocks.
    """
    found = trace(module, partial(data.run, module))
    blocks = [n for n in chain(module, found) if any(True for _ in module.get_submodule(n).children())]
    if not blocks:
        raise InputError(
            "the model has no sequence of blocks, so there is none that a layer could stand in for",
            "factorize replaces single layers instead",
        )
    check_globs(blocks, settings.globs)
    counts = count_macs(module, data.example)
    places = Places([], {}, sum(counts.values()), found)
    once = found.once()
    for name in blocks:
        why = settings.left_out(name)
        place = once[name].first
        if not why and place is not None:
            seen = observed(module, name, place, lambda: data.run(module))
            inside = sum(macs for layer, macs in counts.items() if layer.startswith(f"{name}."))
            made = _site(name, module.get_submodule(name), place, seen, kinds, inside)
            why = made if isinstance(made, str) else ""
            if isinstance(made, Site):
                places.sites.append(made)
        if why:
            places.skipped[name] = why
    return places


def _site(name: str, block: nn.Module, place: int | str, seen: Seen, kinds: Sequence[Fitted], macs: int) -> Site | str:
    """The block with its options, or why there are none."""
    sizes = _sizes(block, seen)
    if isinstance(sizes, str):
        return sizes
    pictures, stride = sizes
    common: dict[str, Any] = {"place": place, "values": _values(seen.out), **_kept(block, seen)}
    inputs, outputs = _width(seen.given, pictures), _width(seen.before, pictures)
    positions = seen.before.numel() // outputs
    own = sum(p.numel() for p in block.parameters())
    options: dict[Fitted, StandInFacts] = {}
    costs: dict[Fitted, int] = {}
    for kind in kinds:
        if (kind in SIZES) != pictures:
            continue
        window = SIZES.get(kind, 1)
        weights = inputs * outputs * window * window
        if weights < own and positions * weights < macs:
            shape = [outputs, inputs, window, window] if pictures else [outputs, inputs]
            options[kind] = StandInFacts(kind=kind, shape=shape, stride=stride, **common)
            costs[kind] = positions * weights
    if not options:
        return "a fitted layer of that kind would be no smaller than it"
    return Site(name, options, tuple(seen.given.shape), macs, costs)


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
