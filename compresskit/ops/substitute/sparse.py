"""Self-attention at less than the square of the length: within a window, or through a few sums over all tokens.

* ``window``: a query hears the tokens around it, and the first tokens, which hear and are heard by all (Beltagy et al.,
  "Longformer", 2020). Keys are gathered block by block: a mask over dense scores would cost more than dense attention.
* ``linformer``: keys and values are replaced by a few weighted sums of them (Wang et al., "Linformer", 2020). The sums
  begin as the means of equal pieces of the sequence, and may be trained. Left out: weights of each head's own.
* ``performer`` and ``linear``: see :mod:`compresskit.ops.substitute.kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.facts.substitute import AttentionFacts
from compresskit.ops.calibration.trace import tensors_in, trace
from compresskit.ops.packed.modules import layer_of_card, set_module
from compresskit.ops.prune.same import same
from compresskit.ops.shrinking import CalibrationData
from compresskit.ops.substitute.halves import attention_of, dense
from compresskit.ops.substitute.kernels import drawn_features, through_elu, through_features
from compresskit.ops.substitute.merged import alike_in_front
from compresskit.ops.substitute.merging import padded_to
from compresskit.ops.substitute.recorder import observed, placed
from compresskit.ops.substitute.stand_in import keep_plain

_SILENT = -1e9


class SparseAttention(nn.Module):
    """In the place of a module of self-attention, with its projections.

    Args:
        part: That module.
        facts: What attends to what.
        made: What random features are drawn from.
    """

    features: Tensor

    def __init__(self, part: nn.Module, facts: AttentionFacts, made: torch.Generator) -> None:
        super().__init__()
        self.part = part
        self._facts = facts
        like = next(part.parameters())
        if facts.rank:
            self.sums = nn.Parameter(_pieces(facts.rank, facts.tokens).to(like.device, like.dtype))
        if facts.features:
            features = drawn_features(facts.features, facts.width, made)
            self.register_buffer("features", features.to(like.device, like.dtype))
        keep_plain(self, part)
        self.train(part.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returned, without its weights of attention."""
        x = placed(self._facts.place, args, kwargs)
        parts = attention_of(self.part)
        if parts is None:
            raise TypeError(f"{type(self.part).__name__} has lost its parts")
        bias = key_bias(next((t for t in tensors_in((args, kwargs)) if t is not x and t.dim() == 4), None), x)
        joined = parts.finish(self._attended(*parts.project(x), bias))
        return (joined, *(None,) * (self._facts.values - 1)) if self._facts.values else joined

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        if self._facts.window:
            return windowed(query, key, value, bias, self._facts.window, self._facts.everywhere)
        if self._facts.kernel == "elu":
            return through_elu(query, key, value, bias)
        if self._facts.kernel == "softmax":
            return through_features(query, key, value, bias, self.features)
        heard = None if bias is None else (bias > _SILENT / 2).to(key.dtype).transpose(2, 3)
        key, value = (t if heard is None else t * heard for t in (key, value))
        return dense(query, self.sums @ key, self.sums @ value, None)


def key_bias(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """What is added to the scores of each key, ``(n, 1, 1, T)``, from the mask of an encoder's attention."""
    if mask is None:
        return None
    row = mask[:, :1, :1]
    heard = row if row.dtype == torch.bool else row > -1
    return torch.where(heard, 0.0, _SILENT).to(x.dtype).expand(x.shape[0], 1, 1, x.shape[1])


def windowed(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, window: int, everywhere: int) -> Tensor:
    """Attention of each query to the keys that are at most ``window`` tokens away, and to the first tokens.

    Args:
        query: ``(n, heads, T, width)``, scaled.
        key: The same shape.
        value: The same shape.
        bias: Added to the scores of each key: ``(n, 1, 1, T)``.
        window: Tokens on either side; also those of a block.
        everywhere: First tokens that all hear, and that hear all; at most twice the window.

    Returns:
        The shape of the queries.
    """
    n, heads, count, width = query.shape
    number = torch.arange(padded_to(count, window), device=query.device)
    at = number.clamp(max=count - 1)
    # Padding, and the first tokens, which come by themselves, are silent in the windows.
    local = torch.where((number < count) & (number >= everywhere), 0.0, _SILENT).to(query.dtype)[None, None, None]
    if bias is not None:
        local = local + bias.index_select(3, at)
    blocks = query.index_select(2, at).reshape(n, heads, -1, window, width)
    keys, values = (_around(t.index_select(2, at).reshape(n, heads, -1, window, width), 0.0) for t in (key, value))
    near = _around(local.reshape(local.shape[0], 1, -1, window, 1), _SILENT).transpose(3, 4)
    inside = torch.arange(window, device=query.device)[:, None] + window
    away = (inside - torch.arange(3 * window, device=query.device)).abs()
    scores = blocks @ keys.transpose(3, 4) + near + torch.where(away <= window, 0.0, _SILENT).to(query.dtype)
    first = key[:, :, None, :everywhere]
    if everywhere:
        heard = blocks @ first.transpose(3, 4)
        if bias is not None:
            heard = heard + bias[:, :, None, :, :everywhere]
        scores = torch.cat([heard, scores], dim=-1)
    weights = scores.softmax(dim=-1)
    out = weights[..., everywhere:] @ values
    if everywhere:
        out = out + weights[..., :everywhere] @ value[:, :, None, :everywhere]
    out = out.reshape(n, heads, -1, width)
    if everywhere:
        out = torch.cat([dense(query[:, :, :everywhere], key, value, bias), out[:, :, everywhere:]], dim=2)
    # by their numbers, not up to one: torch.export can't tell that there are enough
    return out.index_select(2, torch.arange(count, device=query.device))


def _around(blocks: Tensor, fill: float) -> Tensor:
    """Each block between its neighbours: ``(n, heads, blocks, tokens, width)`` to three times the tokens."""
    outside = torch.full_like(blocks[:, :, :1], fill)
    padded = torch.cat([outside, blocks, outside], dim=2)
    return torch.cat([padded[:, :, :-2], blocks, padded[:, :, 2:]], dim=3)


def _pieces(rank: int, tokens: int) -> Tensor:
    """The means of ``rank`` pieces of a sequence, about equally long: ``(rank, tokens)``; the identity for as many."""
    piece = torch.arange(tokens) * rank // tokens
    member = (piece[None] == torch.arange(rank)[:, None]).float()
    return member / member.sum(dim=1, keepdim=True)


@torch.no_grad()
def find(module: nn.Module, data: CalibrationData) -> dict[str, AttentionFacts]:
    """The modules of self-attention that can be put together anew, each as dense attention: all tokens hear all.

    Args:
        module: In eval mode.
        data: How it is called; the example has samples that differ.

    Returns:
        Name to what is known of its calls; ``everywhere`` are tokens that are the same in all samples.

    Raises:
        InputError: There are none, or they compute something else than their parts tell.
    """
    once = trace(module, partial(data.run, module)).once()
    found: dict[str, AttentionFacts] = {}
    for name, call in once.items():
        parts = attention_of(module.get_submodule(name)) if name and call.first is not None else None
        if call.first is not None and parts is not None:
            seen = observed(module, name, call.first, partial(data.run, module))
            values = len(seen.out) if isinstance(seen.out, (tuple, list)) else 0
            tokens = seen.given.shape[1] if seen.given.dim() == 3 else 0
            if not tokens:
                continue
            # of the first: behind it they have heard the others
            first = next((fact.everywhere for fact in found.values()), None)
            first = alike_in_front(seen.given) if first is None else first
            width = parts.project(seen.given)[1].shape[-1]
            found[name] = AttentionFacts(place=call.first, values=values, tokens=tokens, everywhere=first, width=width)
    if not found:
        raise InputError(
            "no self-attention was recognized",
            "it is recognized by the names of its parts, as in transformers' and timm's ViT, DeiT and BERT",
        )
    wanted = data.run(module)
    with sparse(module, {name: replace(fact, window=fact.tokens) for name, fact in found.items()}):
        equal = same(wanted, data.run(module))
    if not equal:
        causal = any(_causal(module, name, fact, data) for name, fact in found.items())
        why = ": it is causal, a token attends only to those before it, and here it would see later ones too"
        raise InputError(
            "the attention of this model computes something else than softmax over all tokens"
            f"{why if causal else ''}, so it is left as it is"
        )
    return found


def _causal(module: nn.Module, name: str, fact: AttentionFacts, data: CalibrationData) -> bool:
    """Whether the first half of the tokens is not told of the second."""
    part, half, outs = module.get_submodule(name), fact.tokens // 2, []

    def turned(_part: nn.Module, args: Any, kwargs: Any) -> None:
        x = placed(fact.place, args, kwargs)
        x[:, half:] = x[:, half:].flip(-1)

    def note(_part: nn.Module, _args: Any, out: Any) -> None:
        outs.append(next(tensors_in(out))[:, :half].clone())

    with ExitStack() as stack:
        stack.callback(part.register_forward_hook(note).remove)
        data.run(module)
        stack.callback(part.register_forward_pre_hook(turned, with_kwargs=True).remove)
        data.run(module)
    return same(outs[0], outs[1])


@torch.no_grad()
def change_of_each(
    module: nn.Module, layers: Mapping[str, AttentionFacts], data: CalibrationData, seed: int
) -> dict[str, float]:
    """How far the model's output moves with each layer alone replaced, in relative L2.

    Args:
        module: In eval mode.
        layers: What each attends to then.
        data: How it is called.
        seed: Of random features.
    """
    before = next(tensors_in(data.run(module))).clone()
    found = {}
    for name, fact in layers.items():
        with sparse(module, {name: fact}, seed):
            found[name] = float((next(tensors_in(data.run(module))) - before).norm() / before.norm().clamp(min=1e-12))
    return found


@contextmanager
def sparse(module: nn.Module, layers: Mapping[str, AttentionFacts], seed: int = 0) -> Iterator[None]:
    """The module with such attention, for a while."""
    parts = {name: module.get_submodule(name) for name in layers}
    replay(module, layers, seed)
    try:
        yield
    finally:
        for name, part in parts.items():
            set_module(module, name, part)


def replay(module: nn.Module, layers: Mapping[str, AttentionFacts], seed: int = 0) -> None:
    """Put such attention into a module, in place.

    Args:
        module: Holds the layers.
        layers: What each attends to.
        seed: Of random features; a bundle has them among its tensors.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    made = torch.Generator().manual_seed(seed)
    for name, fact in layers.items():
        part = layer_of_card(module, name, "attends to less")
        if attention_of(part) is None:
            raise InputError(f"layer '{name}' is no self-attention that is known", "check `arch` and `arch_args`")
        if fact.window and fact.everywhere > 2 * fact.window:
            raise InputError(f"layer '{name}' has a window narrower than its first tokens", "the card is damaged")
        if not fact.window and not fact.kernel and not 0 < fact.rank <= fact.tokens:
            raise InputError(f"layer '{name}' has {fact.rank} sums of {fact.tokens} tokens", "the card is damaged")
        if (fact.kernel == "softmax") != bool(fact.features and fact.width):
            raise InputError(f"layer '{name}' has {fact.features} random features", "the card is damaged")
        set_module(module, name, SparseAttention(part, fact, made))
