"""The tiny networks whose bundles are frozen here; changing one makes its bundles unreadable."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Words(nn.Module):
    """Token ids ``(batch, 6)`` to 24 classes; the classifier shares the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(24, 32)
        self.wide = nn.Linear(32, 48)
        self.back = nn.Linear(48, 32)
        self.head = nn.Linear(32, 24, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.words(x).mean(1)
        return self.head(y + self.back(torch.tanh(self.wide(y))))


class Block(nn.Module):
    """Two convolutions with a shortcut that is filled up with zeros where the width grows."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.last = nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - into

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.second(F.relu(self.norm(self.first(x)))))
        if self.more:
            half = self.more // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(x + y)


class Pictures(nn.Module):
    """Grey pictures ``(batch, 1, 8, 8)`` to 4 classes: three residual blocks, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(8, 16, 2), Block(16, 16, 1), Block(16, 16, 1)])
        self.wide = nn.Linear(16, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        for block in self.blocks:
            y = block(y)
        return self.head(F.relu(self.wide(y.mean((2, 3)))))
