"""The CIFAR ResNets of He et al., "Deep Residual Learning for Image Recognition" (2016), section 4.2.

A model as a user would write it: nothing in it knows of CompressKit. The shortcut is option A of the paper,
without parameters: every second pixel, and zeros for the channels that are new.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut: ``(n, inside, h, w) -> (n, outside, h / stride, w / stride)``."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride = stride
        self.extra = outside - inside

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.extra == 0:
            return x
        before = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Images ``(n, 3, 32, 32)`` to logits ``(n, classes)``; ``6 * blocks + 2`` layers deep."""

    def __init__(self, blocks: int, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stack(width, width, blocks, stride=1)
        self.layer2 = self._stack(width, 2 * width, blocks, stride=2)
        self.layer3 = self._stack(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stack(inside: int, outside: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (Block(outside, outside, 1) for _ in range(blocks - 1))
        return nn.Sequential(Block(inside, outside, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


def resnet20(classes: int = 10) -> ResNet:
    """20 layers, 0.27 M parameters, 41 M MACs."""
    return ResNet(3, classes=classes)


def resnet56(classes: int = 10) -> ResNet:
    """56 layers, 0.85 M parameters, 126 M MACs."""
    return ResNet(9, classes=classes)
