"""The blocks of a classifier that an early exit could follow, and the features that its head would see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.route import ExitFacts
from compresskit.ops.calibration.trace import Trace, chain, tensors_in, trace
from compresskit.ops.globs import check_globs, left_out
from compresskit.ops.macs import calling, count_macs
from compresskit.ops.route.exits import HEAD, ExitHead, features, mask_in

_FEATURES = 512
"""A head looks at about that many values of a picture at most, so that it costs little."""
_CELLS = (4, 3, 2)
"""Windows along an axis of a picture, from which on the whole picture is one."""
_WIDE = 12
"""Pixels a side from which on the first convolution of a head halves a picture."""
_EARLIEST, _LATEST = 0.08, 0.92
"""Shares of the multiply-accumulates between which an exit can gain anything."""


@dataclass(frozen=True)
class Places:
    """Where exits could be.

    Attributes:
        layers: What would be recorded of each, by block, in the order of the pass; ``macs`` is the share up to the end
            of the block, without heads.
        skipped: Name of a block to why it gets no exit.
        macs: Multiply-accumulates of one sample of the whole model.
        heads: Those of each head.
        output: The key of the logits in the model's output; None where that is the logits themselves.
    """

    layers: dict[str, ExitFacts]
    skipped: dict[str, str]
    macs: int
    heads: dict[str, int]
    output: str | None

    def head_share(self, name: str) -> float:
        """What a head costs, as a share of the model's multiply-accumulates."""
        return self.heads[name] / max(1, self.macs)


def find(
    module: nn.Module,
    run: Callable[[nn.Module], Any],
    example: Mapping[str, Tensor],
    *,
    count: int,
    hidden: int = 0,
    convs: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Places:
    """Up to so many blocks along a model's chain, evenly spaced by multiply-accumulates.

    Args:
        module: In eval mode.
        run: Calls a module with the example.
        example: One sample.
        count: Most places.
        hidden: Units of a head between features and logits.
        convs: Convolutions of a head behind pictures.
        include: Globs of blocks; empty: all.
        exclude: Globs of blocks that get no exit.

    Raises:
        UsageError: A glob matches no block.
        InputError: The model has no chain of blocks, or its output isn't the logits of some classes.
    """
    with calling(module):
        output, classes = _classes(run(module))
        found = trace(module, partial(run, module))
        blocks = _ends(module, chain(module, found))
        if not blocks:
            raise InputError("the model has no sequence of blocks that an exit could follow")
        check_globs(blocks, (*include, *exclude))
        counts = count_macs(module, example)
        total, upto = sum(counts.values()), _upto(found, counts, blocks)
        given = outputs_of(module, blocks, partial(run, module))
    layers, skipped = dict[str, ExitFacts](), dict[str, str]()
    for name in blocks:
        share = upto[name] / max(1, total)
        fact = _fact(
            given.get(name),
            ExitFacts(form="vectors", width=1, classes=classes, hidden=hidden, threshold=1.0, macs=round(share, 6)),
            convs,
        )
        if why := left_out(name, include, exclude):
            skipped[name] = why
        elif not _EARLIEST <= share <= _LATEST:
            skipped[name] = f"{100 * share:.0f} % of the multiply-accumulates lie before it"
        elif isinstance(fact, str):
            skipped[name] = fact
        elif hasattr(module.get_submodule(name), HEAD):
            skipped[name] = f"it has an attribute '{HEAD}' already"
        else:
            layers[name] = fact
    if not layers:
        raise InputError("no block of the model can get an exit", next(iter(skipped.values())))
    picked = _spread(layers, count)
    skipped |= dict.fromkeys(layers.keys() - picked, "`candidates` others were tried")
    layers = {name: layers[name] for name in layers if name in picked}
    return Places(layers, skipped, total, {name: _head_macs(layers[name], given[name]) for name in layers}, output)


@torch.no_grad()
def outputs_of(module: nn.Module, names: Sequence[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    """What some submodules give in a pass."""
    found: dict[str, Tensor] = {}

    def hook(_module: nn.Module, _args: Any, out: Any, name: str) -> None:
        if (tensor := next(tensors_in(out), None)) is not None:
            found[name] = tensor

    with ExitStack() as stack:
        for name in names:
            handle = module.get_submodule(name).register_forward_hook(partial(hook, name=name))
            stack.callback(handle.remove)
        run()
    return found


@torch.no_grad()
def features_of(
    module: nn.Module, places: Places, batch: Mapping[str, Tensor], run: Callable[[], Any]
) -> tuple[dict[str, Tensor], Tensor]:
    """What the head at each place sees of a batch, see :meth:`ExitHead.kept`, by block; and the model's logits."""
    found: dict[str, Tensor] = {}
    mask = mask_in(module, tuple(batch.values()), batch)

    def hook(block: nn.Module, _args: Any, out: Any, name: str) -> None:
        head = block.get_submodule(HEAD)
        if isinstance(head, ExitHead):
            found[name] = head.kept(next(tensors_in(out)), mask)

    with ExitStack() as stack:
        for name in places.layers:
            handle = module.get_submodule(name).register_forward_hook(partial(hook, name=name))
            stack.callback(handle.remove)
        out = run()
    return found, next(tensors_in(out))


def _classes(out: Any) -> tuple[str | None, int]:
    """The key of the logits in an output, and how many classes they tell apart."""
    tensors = list(tensors_in(out))
    key = next((k for k, v in out.items() if isinstance(v, Tensor)), None) if isinstance(out, Mapping) else None
    if len(tensors) != 1 or (key is None and not isinstance(out, Tensor)):
        raise InputError(f"the model gives {len(tensors)} values, exits need a classifier's logits alone")
    if tensors[0].dim() != 2 or tensors[0].shape[1] < 2:
        raise InputError(
            f"the model gives {list(tensors[0].shape[1:])} a sample, exits need the logits of two classes or more",
            "exits are for classifiers",
        )
    return key, int(tensors[0].shape[1])


def _ends(module: nn.Module, blocks: Sequence[str]) -> list[str]:
    """The blocks that an exit can follow: not between a layer and what is made of it by activations or pooling."""
    weighted = [any(True for _ in module.get_submodule(name).parameters()) for name in blocks]
    kept = []
    for place, name in enumerate(blocks[:-1]):
        layer = module.get_submodule(name)
        bare = weighted[place] and not any(True for _ in layer.children())
        if weighted[place + 1] and not bare and not isinstance(layer, nn.Sequential):
            kept.append(name)
    return kept


def _upto(found: Trace, counts: Mapping[str, int], blocks: Sequence[str]) -> dict[str, int]:
    """Multiply-accumulates until a block has ended."""
    upto, total, seen, result = {}, 0, set[str](), dict[str, int]()
    for call in found.calls:
        if call.name in counts and call.name not in seen:
            seen.add(call.name)
            total += counts[call.name]
        upto[call.name] = total
    for name in blocks:
        inside = [upto[n] for n in upto if n == name or n.startswith(f"{name}.")]
        result[name] = max(inside)
    return result


def _fact(given: Tensor | None, like: ExitFacts, convs: int) -> ExitFacts | str:
    """What a head behind a block would be, or why there can't be one.

    Args:
        given: What the block gives.
        like: What does not depend on it.
        convs: Convolutions of a head behind pictures.
    """
    if given is None or not given.is_floating_point() or given.dim() not in (2, 3, 4):
        return "it gives no picture, tokens or vector"
    if given.dim() == 2:
        return replace(like, form="vectors", width=given.shape[1])
    if given.dim() == 3:
        return replace(like, form="tokens", width=given.shape[2])
    width, sides = int(given.shape[1]), [int(side) for side in given.shape[2:]]
    last, stride = width, 1
    if convs:
        stride = 2 if min(sides) >= _WIDE else 1
        last, sides = width * stride, [-(-side // stride) for side in sides]
    cells = next((c for c in _CELLS if last * c * c <= _FEATURES and all(s % c == 0 for s in sides)), 1)
    pool = [side // cells for side in sides] if cells > 1 else []
    return replace(
        like, form="pictures", width=width, convs=[last] * convs, stride=stride, pool=pool, cells=cells * cells
    )  # fmt: skip


def _head_macs(fact: ExitFacts, given: Tensor) -> int:
    """Multiply-accumulates of a head for one sample."""
    inside = features(fact)
    total, before = inside * fact.hidden + (fact.hidden or inside) * fact.classes, fact.width
    places = math.prod(-(-int(side) // fact.stride) for side in given.shape[2:]) if fact.convs else 0
    for channels in fact.convs:
        total += 9 * before * channels * places
        before = channels
    return total


def _spread(layers: Mapping[str, ExitFacts], count: int) -> set[str]:
    """Blocks at even distances, by the share of multiply-accumulates that lies before them."""
    names = list(layers)
    if len(names) <= count:
        return set(names)
    low, high = layers[names[0]].macs, layers[names[-1]].macs
    aims = [low + (high - low) * i / max(1, count - 1) for i in range(count)]
    return {min(names, key=lambda name: abs(layers[name].macs - aim)) for aim in aims}
