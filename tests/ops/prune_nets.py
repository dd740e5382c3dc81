"""Small networks of every shape that channels may take through a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.act = nn.PReLU(16)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.conv3 = nn.Conv2d(16, 8, 3)
        self.head = nn.Linear(8 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        x = F.relu(self.conv3(F.relu(self.up(F.relu(self.conv2(x))))))
        return self.head(x.flatten(1))


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.extra = stride, outside - inside

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return F.relu(out + x)


class Residual(nn.Module):
    """With a shortcut of zero-filled channels (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second = Block(16, 16, 1), Block(16, 32, 2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(F.relu(self.stem(x)))).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 24, 1)
        self.depth, self.norm = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.BatchNorm2d(24)
        self.reduce = nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.depth(F.relu6(self.expand(x)))))
        return self.head(F.relu(self.reduce(x)).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 1)
        self.mid = nn.Conv2d(32, 48, 3, padding=1, groups=4)
        self.last = nn.Conv2d(48, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mid(F.relu(self.first(x))))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(48, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, :, :4, :4].flatten(1))


class Joined(nn.Module):
    """Two branches side by side, and one of them again added to their half."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 24, 1)
        self.norm = nn.BatchNorm2d(40)
        self.merge = nn.Conv2d(40, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = F.relu(self.norm(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)))
        return self.head(F.relu(self.merge(both)).mean((2, 3)))


class Normed(nn.Module):
    """A trunk whose channels a LayerNorm mixes, and a branch whose channels nothing mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 32)
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, :, :4, :4].flatten(1))
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


NETS: tuple[Callable[[], nn.Module], ...] = (Plain, Residual, Depthwise, Grouped, Mlp, Joined, Normed)


def made(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network with random weights and statistics, in eval mode."""
    torch.manual_seed(seed)
    net = kind()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(std=0.2)
                layer.running_var.uniform_(0.5, 1.5)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.2)
    return net.eval()


def images(count: int = 8, seed: int = 1) -> Tensor:
    """float32 ``(count, 3, 8, 8)``."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
