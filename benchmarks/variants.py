"""What takes the place of a dense layer: attention over 2,048 tokens in five forms, and a separable ResNet-20.

Only their speed is looked at, so that weights and the choice of what is attended to are random. All attentions take
one head's queries, keys and values ``(n, 2048, 192)`` and give ``(n, 2048, 64)``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

TOKENS, HEAD = 2048, 64
WINDOW, GLOBAL = 64, 16  # tokens of a block, which sees itself and its neighbours; tokens that all see
FEW = 64  # keys or features of the two low-rank forms


class Dense(nn.Module):
    """Softmax attention."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(HEAD**-0.5))  # something to save

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, dim=-1)
        return self.weighed(q * self.scale, k, v)

    def weighed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class SelfAttention(nn.Module):
    """One head with its projections, the parts by the names that ``substitute`` knows."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 1, nn.Linear(HEAD, 3 * HEAD), nn.Linear(HEAD, HEAD)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj((q * HEAD**-0.5 @ k.transpose(-1, -2)).softmax(-1) @ v)


class OneHead(nn.Module):
    """A model that is a head of attention alone: ``(n, 2048, 64)`` to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = SelfAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x)


class Masked(Dense):
    """A window and global tokens, as a mask on all scores (Longformer, Beltagy et al., 2020)."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        block = torch.arange(TOKENS) // WINDOW
        near = (block[:, None] - block[None, :]).abs() <= 1
        self.register_buffer("mask", torch.where(near | (torch.arange(TOKENS) < GLOBAL)[None, :], 0.0, -1e9))

    def weighed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) + self.mask).softmax(-1) @ v


class Gathered(Dense):
    """The same window and global tokens, only their keys gathered (BigBird, Zaheer et al., 2020)."""

    def weighed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        near_k, near_v = (self.near(t) for t in (k, v))
        scores = q.unflatten(1, (-1, WINDOW)) @ near_k.transpose(-1, -2)
        return (scores.softmax(-1) @ near_v).flatten(1, 2)

    def near(self, t: Tensor) -> Tensor:
        """``(n, tokens, width)`` to ``(n, blocks, 3 · window + global, width)``; the ends see each other."""
        blocks = t.unflatten(1, (-1, WINDOW))
        before, after = (torch.cat((blocks[:, -s:], blocks[:, :-s]), 1) for s in (1, -1))
        seen = t[:, None, :GLOBAL].expand(-1, TOKENS // WINDOW, -1, -1)
        return torch.cat((before, blocks, after, seen), 2)


class Linformer(Dense):
    """Keys and values projected to few (Wang et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.shorten = nn.Linear(TOKENS, FEW, bias=False)

    def weighed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (self.shorten(t.transpose(-1, -2)).transpose(-1, -2) for t in (k, v))
        return super().weighed(q, k, v)


class Performer(Dense):
    """Positive random features in place of the softmax (Choromanski et al., 2021)."""

    directions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(HEAD, FEW) * HEAD**-0.25)

    def weighed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = self.features(q, -1), self.features(k, (-2, -1))
        out = q @ (k.transpose(-1, -2) @ torch.cat((v, torch.ones_like(v[..., :1])), -1))
        return out[..., :-1] / out[..., -1:]

    def features(self, t: Tensor, among: int | tuple[int, int]) -> Tensor:
        """What one factor more would do to the largest, the division undoes."""
        powers = t @ self.directions - t.square().sum(-1, keepdim=True) / 2
        return torch.exp(powers - powers.amax(among, keepdim=True)) + 1e-4


def separable() -> nn.Module:
    """ResNet-20 with each 3×3 convolution behind the first as a depthwise and a pointwise one."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    from cifar_resnet import resnet20

    model = resnet20()
    for name, layer in list(model.named_modules())[1:]:
        if isinstance(layer, nn.Conv2d) and name != "conv1":
            inside, outside = layer.in_channels, layer.out_channels
            depthwise = nn.Conv2d(inside, inside, 3, layer.stride, 1, groups=inside, bias=False)
            pair = nn.Sequential(depthwise, nn.Conv2d(inside, outside, 1, bias=False))
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, pair)
    return model
