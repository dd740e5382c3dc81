"""Tokens that get little attention leave after a layer's attention: dropped, or as one token in their place.

"Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations" (Liang et al., 2022). The
attention of the class tokens tells which ones stay. Other than there, the token of those that leave is their mean, and
attention hears it as often as it stands for one, as merged tokens are heard: no training is needed for that.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from compresskit.ops.substitute.merging import Tokens, by_window, rows

_PADDING = -1.0
"""Below all attention: padding leaves first."""
_TINY = 1e-12


def attention_got(query: Tensor, key: Tensor, bias: Tensor | None, protected: int) -> Tensor:
    """The mean attention that each token gets, over heads and class tokens: ``(n, T)``.

    Args:
        query: ``(n, heads, T, width)``, scaled.
        key: The same shape.
        bias: Added to the scores of each key: ``(n, 1, 1, T)``.
        protected: Class tokens in front; without any, all tokens' attention counts.
    """
    scores = (query[:, :, :protected] if protected else query) @ key.transpose(2, 3)
    return (scores if bias is None else scores + bias).softmax(dim=-1).mean(dim=(1, 2))


def drop(
    tokens: Tokens, got: Tensor, count: int, *, protected: int, fuse: bool, window: int = 0, track: bool = True
) -> Tokens:
    """Let the tokens leave that get least attention.

    Args:
        tokens: After the attention.
        got: The attention that each got, ``(n, T)``.
        count: How many tokens fewer there are, of all or of each window.
        protected: Tokens in front that stay.
        fuse: The mean of those that leave stays, weighted by their attention; so one more of them leaves.
        window: Tokens of a window, of each of which as many leave; 0: no windows.
        track: Keep where each of the first tokens is, and what it was when it left.

    Returns:
        The tokens that stay, from the one with the most attention on, behind the protected ones.
    """
    step = partial(_dropped, count=count, protected=0 if window else protected, fuse=fuse, track=track)
    return by_window(tokens, got, protected, window, step)


def _dropped(tokens: Tokens, got: Tensor, *, count: int, protected: int, fuse: bool, track: bool) -> Tokens:
    x, mass, total = tokens.x, tokens.mass, tokens.x.shape[1]
    own = got[:, protected:]
    if tokens.padded and mass is not None:
        own = torch.where(mass[:, protected:] > 0, own, _PADDING)
    # the size by its axis: len() would fix it in an export
    first = torch.arange(protected, device=x.device).expand(x.shape[0], -1)
    order = torch.cat([first, own.argsort(dim=-1, descending=True) + protected], dim=1)
    kept = total - count - int(fuse)
    staying, going = order[:, :kept], order[:, kept:]
    out = replace(tokens, x=rows(x, staying), mass=None if mass is None else mass.gather(1, staying))
    if fuse:
        heavy = torch.ones_like(got) if mass is None else mass
        out = _with_mean(
            replace(out, mass=heavy.gather(1, staying)), rows(x, going), heavy.gather(1, going), got.gather(1, going)
        )
    if not track:
        return out
    rank = order.argsort(dim=-1)
    if fuse:
        return replace(out, place=_moved(rank.clamp(max=kept), tokens.place))
    left = [rows(x, going)]
    if tokens.left is not None:
        left.append(tokens.left)
        # Those that had left lie as far behind as before.
        before = torch.arange(total, total + tokens.left.shape[1], device=x.device).expand(x.shape[0], -1)
        rank = torch.cat([rank, before], dim=1)
    return replace(out, left=torch.cat(left, dim=1), place=_moved(rank, tokens.place))


def _with_mean(tokens: Tokens, gone: Tensor, mass: Tensor, got: Tensor) -> Tokens:
    """One more token behind: the mean of those that are gone."""
    weight = mass * got
    share = weight / weight.sum(dim=1, keepdim=True).clamp(min=_TINY)
    if tokens.mass is None:
        raise ValueError("a mean has a mass")
    return replace(
        tokens,
        x=torch.cat([tokens.x, share[:, None] @ gone], dim=1),
        mass=torch.cat([tokens.mass, mass.sum(dim=1, keepdim=True)], dim=1),
    )


def _moved(to: Tensor, place: Tensor | None) -> Tensor:
    return to if place is None else to.gather(1, place)
