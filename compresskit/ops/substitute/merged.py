"""A run of transformer blocks with fewer and fewer tokens along the way, in the place of the first of them.

What each token stands for passes from block to block, so they are one module: a block called by itself would not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import MergeFacts, TokensFacts
from compresskit.ops.calibration.activation_stream import filled
from compresskit.ops.calibration.trace import chain, tensors_in, trace
from compresskit.ops.packed.modules import layer_of_card, set_module
from compresskit.ops.prune.same import same
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.dropping import attention_got, drop
from compresskit.ops.substitute.halves import halves_of
from compresskit.ops.substitute.merging import Tokens, in_windows, merge, padded_to
from compresskit.ops.substitute.recorder import observed, placed
from compresskit.ops.substitute.stand_in import keep_plain

_MOST_PROTECTED = 16
_WINDOW = 8
"""Tokens of text among which pairs are looked for: a graph of any length has windows of one length."""


class MergedBlocks(nn.Module):
    """Blocks that are called as the first of them was; tokens are merged or dropped between the halves of each.

    Args:
        blocks: In their order.
        layers: What is merged in each.
        facts: How they are called, and what is protected.
    """

    def __init__(self, blocks: Sequence[nn.Module], layers: Sequence[MergeFacts], facts: TokensFacts) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._counts = [layer.merged for layer in layers]
        self._place, self._values = facts.place, facts.values
        self._protected, self._restored, self._window = facts.protected, facts.restored, facts.window
        self._reduction = facts.reduction
        keep_plain(self, blocks[0])
        self.train(blocks[0].training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the last block gives: as many tokens as there were, if they are restored."""
        x = placed(self._place, args, kwargs)
        mass = _mass(next((t for t in tensors_in((args, kwargs)) if t is not x and t.dim() == 4), None), x)
        tokens = Tokens(x, mass, padded=mass is not None)
        if self._window:
            tokens = in_windows(tokens, self._protected, self._window)
        size = self._window
        for block, count in zip(self.blocks, self._counts, strict=True):
            halves = halves_of(block)
            if halves is None:
                raise TypeError(f"{type(block).__name__} has lost its parts")
            bias = tokens.bias
            attended, query, key = halves.attend(tokens.x, bias)
            tokens = replace(tokens, x=attended)
            if count:
                tokens = self._fewer(tokens, (query, key, bias), count, size)
                size = size and size - count
            tokens = replace(tokens, x=halves.feed(tokens.x))
        out = tokens.x
        if self._restored:
            out = tokens.restored(x.shape[1], self._protected, size)
        return _returned(out, self._values)

    def _fewer(self, tokens: Tokens, asked: tuple[Tensor, Tensor, Tensor | None], count: int, window: int) -> Tokens:
        query, key, bias = asked
        if self._reduction == "merge":
            keys = key.mean(dim=1)
            return merge(tokens, keys, count, protected=self._protected, window=window, track=self._restored)
        got, fuse = attention_got(query, key, bias, self._protected), self._reduction == "fuse"
        return drop(tokens, got, count, protected=self._protected, fuse=fuse, window=window, track=self._restored)


class Passed(nn.Module):
    """What is left of a block that :class:`MergedBlocks` computes: it gives what it is given.

    Args:
        block: That block.
        facts: How it is called.
    """

    def __init__(self, block: nn.Module, facts: TokensFacts) -> None:
        super().__init__()
        self._place, self._values = facts.place, facts.values
        keep_plain(self, block)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Its input, and as many values as the block returned."""
        return _returned(placed(self._place, args, kwargs), self._values)


def _returned(x: Tensor, values: int) -> Any:
    return (x, *(None,) * (values - 1)) if values else x


def _mass(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """1 for each token, 0 for padding, from the mask of an attention; None without one."""
    if mask is None:
        return None
    heard = mask[:, 0, 0]
    heard = heard if heard.dtype == torch.bool else heard > -1
    return heard.to(x.dtype).expand(x.shape[:2])


@dataclass(frozen=True)
class Run:
    """Blocks in which tokens can be merged.

    Attributes:
        names: In their order; members of one list.
        facts: How they are called; no layers yet.
        tokens: That the example brings to the first block.
    """

    names: tuple[str, ...]
    facts: TokensFacts
    tokens: int

    def merging(self, merged: int, within: Callable[[str], bool]) -> dict[str, MergeFacts]:
        """A number of tokens merged in each block, at most half of those that may be.

        Args:
            merged: That number.
            within: Whether it is merged in a block.
        """
        found, tokens = {}, self.tokens
        for name in self.names:
            count = min(merged, (tokens - self.facts.protected) // 2) if within(name) else 0
            found[name], tokens = MergeFacts(merged=count), tokens - count
        return found

    def sharing(self, share: float, within: Callable[[str], bool]) -> dict[str, MergeFacts]:
        """A share of the tokens merged in each block: of all, or of those of a window.

        Args:
            share: At most a half.
            within: Whether they are merged in a block.
        """
        found, tokens = {}, self.facts.window or self.tokens - self.facts.protected
        for name in self.names:
            count = min(round(share * tokens), tokens // 2) if within(name) else 0
            found[name], tokens = MergeFacts(merged=count), tokens - count
        return found

    def behind(self, layers: Mapping[str, MergeFacts]) -> int:
        """Tokens behind the last block, of the example."""
        window, own = self.facts.window, self.tokens - self.facts.protected
        own = padded_to(own, window) if window else own
        gone = sum(layer.merged for layer in layers.values())
        return self.facts.protected + own - gone * (own // window if window else 1)


@torch.no_grad()
def find(module: nn.Module, data: CalibrationData, *, first: int = 0, windows: bool = False) -> Run:
    """The blocks of a model in which tokens can be merged: their parts, put together here, give what they give.

    Args:
        module: In eval mode.
        data: How it is called; the example has two samples that differ.
        first: Tokens in front that are protected at least.
        windows: The inputs may have any length: tokens are merged within windows of one length.

    Raises:
        InputError: There are none.
    """
    found = trace(module, partial(data.run, module))
    names = chain(module, found)
    held = [name for name in names if halves_of(module.get_submodule(name)) is not None]
    if not held or len({name.rpartition(".")[0] for name in held}) != 1:
        raise InputError(
            "no sequence of transformer blocks was recognized, so no tokens can be merged",
            "blocks are recognized by the names of their parts, as in transformers' and timm's ViT, DeiT and BERT",
        )
    calls = [found.once()[name] for name in held]
    if len({call.first for call in calls}) != 1 or calls[0].first is None:
        raise InputError("the blocks of this model are called in different ways, so no tokens can be merged")
    seen = observed(module, held[0], calls[0].first, partial(data.run, module))
    if seen.given.dim() != 3:
        raise InputError("no tokens pass through the blocks of this model, so none can be merged")
    protected = max(first, alike_in_front(seen.given))
    values = len(seen.out) if isinstance(seen.out, (tuple, list)) else 0
    window = _WINDOW if windows else 0
    facts = TokensFacts(layers={}, protected=protected, window=window, place=calls[0].first, values=values)
    facts = replace(facts, restored=_read_behind(module, held[-1], protected, data))
    run = Run(tuple(held), facts, seen.given.shape[1])
    wanted = data.run(module)
    with merged(module, run, run.merging(0, lambda _: False)):
        equal = same(wanted, data.run(module))
    if not equal:
        raise InputError(
            "the blocks of this model compute something else than attention and feed-forward beside shortcuts, so no "
            "tokens can be merged"
        )
    return run


def alike_in_front(x: Tensor) -> int:
    """How many tokens in front are the same in all samples, as class tokens are: of ``(n, T, width)``, at most 16."""
    alike = (x == x[:1]).flatten(2).all(2).all(0).long().cumprod(0)
    return int(alike[:_MOST_PROTECTED].sum())


def _read_behind(module: nn.Module, last: str, protected: int, data: CalibrationData) -> bool:
    """Whether the model's output depends on other tokens behind the last block than the protected ones."""

    def move(_block: nn.Module, _args: Any, out: Any) -> Any:
        x = next(tensors_in(out)).clone()
        # not by one number: a normalization would take it away again
        x[:, protected:] += x.abs().max() * torch.linspace(-1, 1, x.shape[-1], device=x.device).square()
        return filled(out, x)

    before, handle = data.run(module), module.get_submodule(last).register_forward_hook(move)
    try:
        return not same(before, data.run(module))
    finally:
        handle.remove()


@contextmanager
def merged(module: nn.Module, run: Run, layers: Mapping[str, MergeFacts]) -> Iterator[None]:
    """The module with merged tokens, for a while."""
    blocks = {name: module.get_submodule(name) for name in run.names}
    place(module, run.names, replace(run.facts, layers=layers))
    try:
        yield
    finally:
        for name, block in blocks.items():
            set_module(module, name, block)


def place(module: nn.Module, names: Sequence[str], facts: TokensFacts) -> None:
    """Put merged blocks into a module, in place.

    Args:
        module: Holds the blocks.
        names: Of the blocks, in their order.
        facts: What is merged in each.
    """
    blocks = [module.get_submodule(name) for name in names]
    set_module(module, names[0], MergedBlocks(blocks, [facts.layers[name] for name in names], facts))
    for name, block in zip(names[1:], blocks[1:], strict=True):
        set_module(module, name, Passed(block, facts))


def replay(module: nn.Module, facts: TokensFacts) -> None:
    """Merge the tokens of a freshly built module as the facts tell.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    for name in facts.layers:
        if halves_of(layer_of_card(module, name, "merged tokens")) is None:
            raise InputError(f"layer '{name}' is no transformer block that is known", "check `arch` and `arch_args`")
    holders = {name.rpartition(".")[0] for name in facts.layers}
    if len(holders) != 1:
        raise InputError("blocks that merge tokens lie in different lists", "the card is damaged")
    (holder,) = holders
    names = [f"{holder}.{leaf}".removeprefix(".") for leaf, _ in module.get_submodule(holder).named_children()]
    place(module, [name for name in names if name in facts.layers], facts)
