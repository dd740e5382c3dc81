"""Whole blocks of a model dropped: those without which its output moves the least.

"ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (Men et al., 2024) ranks blocks by how
little each changes what passes through it, all in one pass. Here that is one way; the other leaves one block out at a
time, looks at the model's output, and begins again after each that is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compresskit.errors import InputError, listing
from compresskit.facts.prune import DepthFacts
from compresskit.ops.calibration.activation_stream import Batch, Forward, filled, replaced
from compresskit.ops.calibration.trace import chain, copied, tensors_in, trace
from compresskit.ops.packed.modules import layer_of_card
from compresskit.ops.prune.same import same
from compresskit.ops.quantize.sensitivity import apart, floats

Ranking = Literal["output", "influence"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Block:
    """A block that can be left out: it gives what it takes in, changed, in the same shape.

    Attributes:
        name: Dotted name; its parent is a ``ModuleList`` or ``Sequential``.
        place: Where its input stands among the arguments: a position or a keyword.
        out: What it returned once, for the kind of value.
    """

    name: str
    place: int | str
    out: Any


@torch.no_grad()
def blocks_of(module: nn.Module, batch: Batch, forward: Forward) -> list[Block]:
    """The blocks along the model's chain that can be left out.

    Raises:
        InputError: There are fewer than two.
    """
    found = trace(module, partial(forward, module, batch))
    once = found.once()
    names = [n for n in chain(module, found) if any(True for _ in module.get_submodule(n).children())]
    seen = _passing(module, names, batch, forward)
    blocks = []
    for name in names:
        place = once[name].first
        if place is not None and name in seen:
            given, out = seen[name]
            if given.shape == next(tensors_in(out)).shape and any(
                True for _ in module.get_submodule(name).parameters()
            ):
                blocks.append(Block(name, place, _bare(out)))
    if len(blocks) < 2:
        raise InputError(
            "the model has no sequence of blocks with equal input and output shapes, so none can be dropped",
            "prune `method` structured removes channels instead",
        )
    return blocks


@torch.no_grad()
def distances(
    module: nn.Module,
    blocks: Sequence[Block],
    dropped: Sequence[str],
    batches: Sequence[Batch],
    forward: Forward,
    *,
    scores: bool = False,
    progress: Progress,
) -> dict[str, float]:
    """How far the model's output moves when one more block is left out.

    Args:
        module: In eval mode; is not changed.
        blocks: All that could be left out.
        dropped: Names of those that are left out already.
        batches: Inputs by name.
        forward: Calls the module with a batch.
        scores: See :func:`~compresskit.ops.quantize.sensitivity.distances`.
        progress: Called after each block.

    Returns:
        Name to the distance from the output of the whole model, for the blocks not in ``dropped``.
    """
    before = [floats(forward(module, batch)) for batch in batches]
    found = {}
    left = [block for block in blocks if block.name not in dropped]
    for done, block in enumerate(left, 1):
        gone = [b for b in blocks if b.name == block.name or b.name in dropped]
        with skipping(module, gone):
            found[block.name] = apart(before, [floats(forward(module, batch)) for batch in batches], scores=scores)
        progress("measure the blocks", done, len(left))
    return found


@torch.no_grad()
def influences(
    module: nn.Module, blocks: Sequence[Block], batches: Sequence[Batch], forward: Forward, progress: Progress
) -> dict[str, float]:
    """Block influence: one less the mean cosine between what a block takes in and what it gives, position by position.

    Args:
        module: In eval mode; is not changed.
        blocks: Those that could be left out.
        batches: Inputs by name; padding doesn't count.
        forward: Calls the module with a batch.
        progress: Called after each batch.
    """
    total, count = dict.fromkeys((b.name for b in blocks), 0.0), 0
    found = trace(module, partial(forward, module, batches[0]))
    copies = (found.inputs_overwritten(), found.outputs_overwritten())
    for done, batch in enumerate(batches, 1):
        seen = _passing(module, list(total), batch, forward, copies)
        mask = batch.get("attention_mask")
        for name, (given, out) in seen.items():
            axis = 1 if given.dim() == 4 else -1  # channels of a picture
            alike = nn.functional.cosine_similarity(given.float(), next(tensors_in(out)).float(), dim=axis)
            chosen = alike[mask.bool()] if mask is not None and mask.shape == alike.shape else alike.flatten()
            total[name] += float(chosen.double().mean()) * len(given)
        count += len(next(iter(batch.values())))
        progress("measure the blocks", done, len(batches))
    return {name: 1 - value / count for name, value in total.items()}


@contextmanager
def skipping(module: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
    """The model with some blocks left out for a while: each gives what it was given."""
    by_name = {block.name: block for block in blocks}

    def make(name: str) -> Callable[..., Any]:
        block = by_name[name]
        return lambda *args, **kwargs: filled(
            block.out, args[block.place] if isinstance(block.place, int) else kwargs[block.place]
        )

    with replaced(module, list(by_name), make):
        yield


@torch.no_grad()
def drop_proven(
    module: nn.Module, blocks: Sequence[Block], names: Sequence[str], batch: Batch, forward: Forward
) -> dict[str, Any]:
    """As :func:`drop`; what comes out must be what comes out when the blocks are skipped.

    Raises:
        InputError: It isn't: the model's own code counts its blocks. The module is spoilt then.
    """
    with skipping(module, [block for block in blocks if block.name in names]):
        wanted = forward(module, batch)
    stacks = drop(module, names)
    try:
        equal = same(wanted, forward(module, batch))
    except Exception:  # the user's forward, short of blocks that it counts on
        equal = False
    if not equal:
        raise InputError(
            f"the model's code counts on having all its blocks: without {listing(list(names))} it fails",
            "prune `method` structured removes channels instead",
        )
    return stacks


def drop(module: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """Take blocks out of their ``ModuleList`` or ``Sequential``; those behind them move up, in number as in name.

    Args:
        module: Changed in place.
        names: Full names of the blocks.

    Returns:
        For each list how many blocks it had and which are kept, by their names in it: ``{"of": 6, "kept": ["0", …]}``.
    """
    found: dict[str, Any] = {}
    for holder in dict.fromkeys(name.rpartition(".")[0] for name in names):
        children = module.get_submodule(holder)._modules
        kept = [leaf for leaf in children if f"{holder}.{leaf}".removeprefix(".") not in names]
        found[holder] = {"of": len(children), "kept": kept}
        keep(module, holder, kept)
    return found


def keep(module: nn.Module, holder: str, kept: Sequence[str]) -> None:
    """Leave only some children of a ``ModuleList`` or ``Sequential``, numbered anew where they had numbers."""
    modules = module.get_submodule(holder)._modules
    left = [(leaf, modules[leaf]) for leaf in kept]
    modules.clear()
    for index, (leaf, child) in enumerate(left):
        modules[str(index) if leaf.isdigit() else leaf] = child
        if child is not None and leaf.isdigit():
            _renumber(child, int(leaf), index)


def moved(name: str, stacks: Mapping[str, Any]) -> str | None:
    """The name that a layer has once blocks are dropped; None where it went with one.

    Args:
        name: Before.
        stacks: From :func:`drop`.
    """
    for holder in sorted(stacks, key=len, reverse=True):
        above = f"{holder}." if holder else ""
        leaf, dot, rest = name.removeprefix(above).partition(".")
        if not name.startswith(above):
            continue
        kept = stacks[holder]["kept"]
        if leaf not in kept:
            return None
        name = f"{above}{kept.index(leaf) if leaf.isdigit() else leaf}{dot}{rest}"
    return name


def replay(module: nn.Module, facts: DepthFacts) -> None:
    """Take out of a freshly built architecture what :func:`drop` took out.

    An architecture built from a ``config.json`` that counts its layers has them out already.

    Raises:
        InputError: The architecture has other blocks than the facts tell of.
    """
    for holder, stack in facts.stacks.items():
        whole = layer_of_card(module, holder, "lost blocks") if holder else module
        children = list(whole._modules)
        if len(children) == stack.of and stack.kept == [leaf for leaf in children if leaf in stack.kept]:
            keep(module, holder, stack.kept)
        elif not facts.config or len(children) > len(stack.kept):
            raise InputError(
                f"'{holder}' has {len(children)} blocks, it had {stack.of} when some were dropped",
                "check `arch` and `arch_args`",
            )


def _renumber(block: nn.Module, old: int, new: int) -> None:
    """Attention layers know their number: it is where they find their own part of a cache."""
    for part in block.modules():
        if getattr(part, "layer_idx", None) == old:
            part.layer_idx = new  # type: ignore[assignment]


def _passing(
    module: nn.Module,
    names: Sequence[str],
    batch: Batch,
    forward: Forward,
    copies: tuple[Collection[str], Collection[str]] = ((), ()),
) -> dict[str, tuple[Tensor, Any]]:
    """What each block takes in and what it gives; ``copies`` names those whose input, or output, is overwritten."""
    given: dict[str, Tensor] = {}
    seen: dict[str, tuple[Tensor, Any]] = {}

    def before(name: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(tensors_in((args, kwargs)))
        given[name] = x.clone() if name in copies[0] else x

    def after(name: str, _layer: nn.Module, _args: Any, out: Any) -> None:
        seen[name] = given[name], copied(out) if name in copies[1] else out

    with ExitStack() as stack:
        for name in names:
            layer = module.get_submodule(name)
            stack.callback(layer.register_forward_pre_hook(partial(before, name), with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(partial(after, name)).remove)
        forward(module, batch)
    return seen


def _bare(out: Any) -> Any:
    """The kind of a value without its tensors."""
    if isinstance(out, tuple | list):
        return type(out)(_bare(part) for part in out) if type(out) in (tuple, list) else out
    return None if isinstance(out, Tensor) else out
