"""The two halves of a transformer block, attention and feed-forward, found by the names that libraries give them.

A block that has the parts may still compute something else from them, so what is made of it is compared with it
(:func:`compresskit.ops.substitute.merged.find`). Parts are looked up at each call, since later stages replace them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

_PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("qkv",),
)
_HEADS = ("num_heads", "num_attention_heads", "n_heads")
_OUT = ("o_proj", "proj", "out_proj", "out_lin")
_ATTENTION = ("attn", "attention", "self_attn", "self_attention")
_NORMS = (("norm1", "norm2"), ("layernorm_before", "layernorm_after"), ("layer_norm1", "layer_norm2"), ("ln_1", "ln_2"))
_SCALES = (("ls1", "ls2"), ("layer_scale1", "layer_scale2"))
_FEED = ("mlp", "ffn")


Attended = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Halves:
    """A block in two steps.

    Attributes:
        attend: From ``(n, T, width)`` and what is added to the scores of the keys, ``(n, 1, 1, T)`` or nothing, to the
            first half's result, and the scaled queries and the keys, each ``(n, heads, T, width of a head)``.
        feed: From that result to the block's.
    """

    attend: Callable[[Tensor, Tensor | None], Attended]
    feed: Callable[[Tensor], Tensor]


def halves_of(block: Any) -> Halves | None:
    """The halves of a block; None where it has other parts."""
    holder = _first(block, _ATTENTION)
    parts = None if holder is None else attention_of(getattr(holder, "self", holder))
    if parts is None:
        return None
    attention = partial(_attend, parts)
    if _has(block, "intermediate", "output") and _has(holder, "output"):  # BERT
        return Halves(
            lambda x, bias: _changed(attention(x, bias), lambda out: holder.output(out, x)),
            lambda x: block.output(block.intermediate(x), x),
        )
    feed = _first(block, _FEED)
    if feed is None:
        return None
    if _has(block, "sa_layer_norm", "output_layer_norm"):  # DistilBERT
        return Halves(
            lambda x, bias: _changed(attention(x, bias), lambda out: block.sa_layer_norm(out + x)),
            lambda x: block.output_layer_norm(feed(x) + x),
        )
    norms = next((names for names in _NORMS if _has(block, *names)), None)
    if norms is None:
        return None
    first, second = (getattr(block, name) for name in norms)
    scales = next((names for names in _SCALES if _has(block, *names)), None)
    ones = (nn.Identity(), nn.Identity())
    scale1, scale2 = ones if scales is None else (getattr(block, name) for name in scales)
    return Halves(
        lambda x, bias: _changed(attention(first(x), bias), lambda out: x + scale1(out)),
        lambda x: x + scale2(feed(second(x))),
    )


@dataclass(frozen=True)
class SelfAttention:
    """The parts of self-attention.

    Attributes:
        layers: The projections to queries, keys and values; or one to all of them, in this order.
        heads: Of the attention.
        norms: What the queries and the keys of each head pass through; empty: nothing.
        last: The projection of what comes of it; None where that lies outside.
    """

    layers: tuple[Any, ...]
    heads: int
    norms: tuple[Any, ...]
    last: Any

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, divided by the root of their width, keys and values: each ``(n, heads, T, width of a head)``."""
        n, tokens, _ = x.shape
        parts = [layer(x) for layer in self.layers] if len(self.layers) == 3 else self.layers[0](x).chunk(3, dim=-1)
        query, key, value = (p.reshape(n, tokens, self.heads, -1).transpose(1, 2) for p in parts)
        if self.norms:
            query, key = self.norms[0](query), self.norms[1](key)
        return query * query.shape[-1] ** -0.5, key, value

    def finish(self, out: Tensor) -> Tensor:
        """The heads of ``(n, heads, T, width of a head)`` together, and projected: ``(n, T, width)``."""
        out = out.transpose(1, 2).flatten(2)
        joined: Tensor = out if self.last is None else self.last(out)
        return joined


def attention_of(part: Any) -> SelfAttention | None:
    """The parts of a module of self-attention; None where it has others."""
    names = next((names for names in _PROJECTIONS if _has(part, *names)), None)
    heads = next((n for name in _HEADS if isinstance(n := getattr(part, name, None), int)), 0)
    if names is None or heads < 1:
        return None
    norms = tuple(getattr(part, name) for name in ("q_norm", "k_norm")) if _has(part, "q_norm", "k_norm") else ()
    return SelfAttention(tuple(getattr(part, name) for name in names), heads, norms, _first(part, _OUT))


def dense(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of each query to all keys: ``(n, heads, queries, width of a head)``."""
    scores = query @ key.transpose(2, 3)
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ value


def _attend(parts: SelfAttention, x: Tensor, bias: Tensor | None) -> Attended:
    query, key, value = parts.project(x)
    return parts.finish(dense(query, key, value, bias)), query, key


def _changed(attended: Attended, change: Callable[[Tensor], Tensor]) -> Attended:
    return change(attended[0]), *attended[1:]


def _has(part: Any, *names: str) -> bool:
    return all(isinstance(getattr(part, name, None), nn.Module) for name in names)


def _first(part: Any, names: Sequence[str]) -> Any:
    return next((getattr(part, name) for name in names if _has(part, name)), None)
