"""A network of ResNet-50's shape (He et al. 2016, the stride in the 3×3 as is common), without trained weights.

Weights are random; the batch norms' statistics are those of random images, so that activations have a trained network's
size at every depth and int8 ranges mean something.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (3, 4, 6, 3)
PARAMETERS = 25_557_032


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut: ``(n, inside, h, w) -> (n, 4 * width, h / stride, w / stride)``."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = 4 * width
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNet50(nn.Module):
    """Images ``(n, 3, 224, 224)`` to logits ``(n, 1000)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        layers: list[nn.Module] = []
        inside = 64
        for stage, count in enumerate(BLOCKS):
            for index in range(count):
                layers.append(Bottleneck(inside, 64 << stage, 2 if stage and not index else 1))
                inside = 256 << stage
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.layers(x), 1), 1))


def resnet50() -> nn.Module:
    """The network as PyTorch initializes it, for ``--arch``."""
    return ResNet50()


@torch.no_grad()
def settled(seed: int = 0, images: int = 8) -> nn.Module:
    """The network in eval mode, its batch norms' statistics taken from random images."""
    torch.manual_seed(seed)
    module = ResNet50()
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    for block in module.layers:
        nn.init.constant_(block.bn3.weight, 0.5)  # residual branches weigh less than the trunk, as trained ones do
    module.train()(torch.randn(images, 3, 224, 224))
    for norm in norms:
        norm.momentum = 0.1
    return module.eval()
