"""Tokens that are alike become one: bipartite soft matching, after each layer's attention.

"Token Merging: Your ViT But Faster" (Bolya et al., 2023). Every other token looks for the one of the rest whose keys
are most alike; the pairs that are most alike become one token each, the mean of all that it stands for. Attention hears
a token as often as it stands for one. Padding has a mass of nothing: it is in no mean, no query hears it, and it goes
first.

Everything is sorting, choosing of rows and a product with zeros and ones: ``scatter_reduce`` has no right ONNX form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

_FIRST, _LAST = 4.0, -4.0
"""Beyond all cosines: padding goes first, into padding only where nothing else is left."""
_SILENT = -1e9
"""Added to the score of a token that nobody may hear: exp of it is 0 in float32 and bfloat16 alike."""
_TINY = 1e-6


@dataclass(frozen=True)
class Tokens:
    """What passes along the blocks.

    Attributes:
        x: ``(n, T, width)``.
        mass: Of how many of the first tokens each is the mean, ``(n, T)``; 0 is padding. None: of 1.
        padded: Whether some may be padding.
        place: int64 ``(n, T₀)``: where each of the first tokens is now; None: where it was.
        left: Tokens that are no longer computed, ``(n, gone, width)``; places count them behind the others.
    """

    x: Tensor
    mass: Tensor | None = None
    padded: bool = False
    place: Tensor | None = None
    left: Tensor | None = None

    @property
    def bias(self) -> Tensor | None:
        """What is added to the scores of each key: ``(n, 1, 1, T)``; None: nothing."""
        if self.mass is None:
            return None
        bias = self.mass.clamp(min=_TINY).log() if self.padded else self.mass.log()
        if self.padded:
            bias = torch.where(self.mass > 0, bias, _SILENT)
        return bias[:, None, None, :]

    def restored(self, count: int, protected: int, window: int) -> Tensor:
        """For each of the first tokens the one that stands for it now: ``(n, T₀, width)``.

        Args:
            count: The first tokens, T₀.
            protected: Tokens in front that no window holds.
            window: Tokens that a window has now; 0: no windows.
        """
        if not window:
            return self._back(self.x)
        x = self.x[:, protected:]
        if self.place is not None:
            x = self._back(x.reshape(-1, window, x.shape[-1])).reshape(x.shape[0], -1, x.shape[-1])
        # by their numbers, not up to one: torch.export can't tell that there are enough
        x = x.index_select(1, torch.arange(count - protected, device=x.device))
        return torch.cat([self.x[:, :protected], x], dim=1)

    def _back(self, x: Tensor) -> Tensor:
        if self.place is None:
            return x
        return rows(x if self.left is None else torch.cat([x, self.left], dim=1), self.place)


def padded_to(count: int, window: int) -> int:
    """The tokens of an even number of windows: torch.export would make a graph of its own for a single one."""
    return (count + 2 * window - 1) // (2 * window) * 2 * window


def in_windows(tokens: Tokens, protected: int, window: int) -> Tokens:
    """Tokens with padding behind them, so that whole windows, an even number, lie behind the protected ones.

    Args:
        tokens: Before the first block.
        protected: Tokens in front that belong to no window.
        window: Tokens of a window.
    """
    x, mass = tokens.x, torch.ones_like(tokens.x[..., 0]) if tokens.mass is None else tokens.mass
    count = x.shape[1]
    number = torch.arange(protected + padded_to(count - protected, window), device=x.device)
    at = number.clamp(max=count - 1)
    mass = mass.index_select(1, at) * (number < count).to(mass.dtype)
    return Tokens(x.index_select(1, at), mass, padded=True)


def merge(tokens: Tokens, keys: Tensor, count: int, *, protected: int, window: int = 0, track: bool = True) -> Tokens:
    """Merge pairs of tokens.

    Args:
        tokens: After the attention.
        keys: ``(n, T, width of a head)``: what tells how alike two tokens are.
        count: Pairs, of all or of each window; at most half of the tokens there.
        protected: Tokens in front that stay as they are: class tokens.
        window: Tokens of a window, the only ones among which pairs are looked for; 0: no windows.
        track: Keep where each of the first tokens is: in its window, where there are windows.

    Returns:
        ``count`` tokens fewer, of the same mass in all; those that nothing was merged into lie in front.
    """
    step = partial(_merged, count=count, protected=0 if window else protected, track=track)
    return by_window(tokens, keys, protected, window, step)


def by_window(
    tokens: Tokens, told: Tensor, protected: int, window: int, step: Callable[[Tokens, Tensor], Tokens]
) -> Tokens:
    """What a step makes of the tokens, or of those of each window.

    Args:
        tokens: With masses, where there are windows.
        told: What the step reads of each token beside its vector: ``(n, T, …)``.
        protected: Tokens in front that lie in no window.
        window: Tokens of a window; 0: no windows.
        step: Gives fewer tokens; called with tokens and ``told``.
    """
    if not window:
        return step(tokens, told)
    x, mass = tokens.x, tokens.mass
    if mass is None:
        raise ValueError("tokens in windows have masses")
    samples, width = x.shape[0], x.shape[-1]
    own = replace(tokens, x=x[:, protected:].reshape(-1, window, width), mass=mass[:, protected:].reshape(-1, window))
    pieces = step(own, told[:, protected:].reshape(-1, window, *told.shape[2:]))
    if pieces.mass is None:
        raise ValueError("tokens in windows have masses")
    return replace(
        pieces,
        x=torch.cat([x[:, :protected], pieces.x.reshape(samples, -1, width)], dim=1),
        mass=torch.cat([mass[:, :protected], pieces.mass.reshape(samples, -1)], dim=1),
    )


def _merged(tokens: Tokens, keys: Tensor, *, count: int, protected: int, track: bool) -> Tokens:
    x = tokens.x
    mass = torch.ones_like(x[..., 0]) if tokens.mass is None else tokens.mass
    to, order = _matched(keys, mass if tokens.padded else None, protected)
    going = order[:, :count]
    into = to.gather(1, going)
    staying = F.pad(2 * order[:, count:] + protected, (protected, 0))
    if protected > 1:
        staying = staying + F.pad(torch.arange(protected, device=x.device), (0, order.shape[1] - count))
    going = 2 * going + protected
    own, heavy = x[:, protected + 1 :: 2], mass[:, protected + 1 :: 2]
    target = torch.arange(own.shape[1], device=x.device)[None, :, None]
    moved = torch.where(into[:, None, :] == target, mass.gather(1, going)[:, None, :], 0.0)
    weight = heavy + moved.sum(dim=-1)
    share = (weight.clamp(min=_TINY) if tokens.padded else weight).reciprocal()[..., None]
    means = own * (heavy[..., None] * share) + (moved * share) @ rows(x, going)
    return Tokens(
        torch.cat([rows(x, staying), means], dim=1),
        torch.cat([mass.gather(1, staying), weight], dim=1),
        tokens.padded,
        _places(tokens, order, to, count, protected) if track else None,
    )


def _matched(keys: Tensor, mass: Tensor | None, protected: int) -> tuple[Tensor, Tensor]:
    """For every other token its mate among the rest, by number; and those tokens from the best matched on."""
    keys = keys * (keys.square().sum(dim=-1, keepdim=True) + _TINY).rsqrt()
    scores = keys[:, protected::2] @ keys[:, protected + 1 :: 2].transpose(1, 2)
    if mass is not None:
        scores = torch.where(mass[:, None, protected + 1 :: 2] > 0, scores, _LAST)
    best, to = scores.max(dim=-1)
    if mass is not None:
        best = torch.where(mass[:, protected::2] > 0, best, _FIRST)
    return to, best.argsort(dim=-1, descending=True)


def _places(tokens: Tokens, order: Tensor, to: Tensor, count: int, protected: int) -> Tensor:
    """Where each of the first tokens is after a merge."""
    rank = order.argsort(dim=-1)
    behind = protected + order.shape[1] - count
    even = torch.where(rank >= count, protected + rank - count, behind + to)
    number = torch.arange(tokens.x.shape[1] - protected, device=order.device)
    half = number // 2
    later = torch.where(number % 2 == 0, even.index_select(1, half), behind + half)
    first = torch.arange(protected, device=order.device).expand(later.shape[0], -1)
    later = torch.cat([first, later], dim=1)
    return later if tokens.place is None else later.gather(1, tokens.place)


def rows(x: Tensor, which: Tensor) -> Tensor:
    """Rows of each sample: ``(n, T, width)`` and ``(n, k)`` to ``(n, k, width)``; whole rows are copied at once."""
    samples = torch.arange(x.shape[0], device=x.device)[:, None]
    return F.embedding(which + samples * x.shape[1], x.flatten(0, 1))
