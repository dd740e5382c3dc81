"""The two halves of a transformer block, attention and feed-forward, found by the names that libraries give them.

A block that has the parts may still compute something else from them, so what is made of it is compared with it
(:func:`compresskit.ops.substitute.merged.find`). Parts are looked up at each call, since later stages replace them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Halves:
    """A block in two steps.

    Attributes:
        attend: From ``(n, T, width)`` and what is added to the scores of the keys, ``(n, 1, 1, T)`` or nothing, to the
            first half's result and the mean over heads of the keys, ``(n, T, width of a head)``.
        feed: From that result to the block's.
    """

    attend: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    feed: Callable[[Tensor], Tensor]


def halves_of(block: Any) -> Halves | None:
    """The halves of a block; None where it has other parts."""
    holder = _first(block, _ATTENTION)
    attention = None if holder is None else _attention(getattr(holder, "self", holder))
    if attention is None:
        return None
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


def _attention(part: Any) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]] | None:
    """What a module of self-attention computes; None where it has other parts."""
    names = next((names for names in _PROJECTIONS if _has(part, *names)), None)
    heads = next((n for name in _HEADS if isinstance(n := getattr(part, name, None), int)), 0)
    if names is None or heads < 1:
        return None
    layers = [getattr(part, name) for name in names]
    norms = [getattr(part, name) for name in ("q_norm", "k_norm")] if _has(part, "q_norm", "k_norm") else []
    last = _first(part, _OUT)

    def attend(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        n, tokens, _ = x.shape
        parts = [layer(x) for layer in layers] if len(layers) == 3 else layers[0](x).chunk(3, dim=-1)
        query, key, value = (p.reshape(n, tokens, heads, -1).transpose(1, 2) for p in parts)
        if norms:
            query, key = norms[0](query), norms[1](key)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
        weights = (scores if bias is None else scores + bias).softmax(dim=-1)
        out = (weights @ value).transpose(1, 2).reshape(n, tokens, -1)
        return out if last is None else last(out), key.mean(dim=1)

    return attend


def _changed(pair: tuple[Tensor, Tensor], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    return change(pair[0]), pair[1]


def _has(part: Any, *names: str) -> bool:
    return all(isinstance(getattr(part, name, None), nn.Module) for name in names)


def _first(part: Any, names: Sequence[str]) -> Any:
    return next((getattr(part, name) for name in names if _has(part, name)), None)
