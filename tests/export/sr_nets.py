"""Super-resolution nets as they are published, made small; weights as after training: signals neither die nor explode.

Those with ``RANGE`` 255 take pictures of 0…255 and subtract a mean in ``forward``, as EDSR and its descendants do.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = (0.4488, 0.4371, 0.4040)


def conv(i: int, o: int, k: int = 3, **more: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)  # type: ignore[arg-type]


def up(width: int, scale: int = 2, out: int = 3) -> nn.Sequential:
    return nn.Sequential(conv(width, out * scale**2), nn.PixelShuffle(scale))


class Add(nn.Module):
    """``x + gain · body(x)``."""

    def __init__(self, *body: nn.Module, gain: float = 1.0) -> None:
        super().__init__()
        self.body, self.gain = nn.Sequential(*body), gain

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.body(x)


class Shifted(nn.Module):
    """Subtracts the mean of the training pictures, and adds it at the end."""

    def __init__(self, *body: nn.Module, scale: float = 255.0) -> None:
        super().__init__()
        self.body, self.scale = nn.Sequential(*body), scale
        self.mean = torch.tensor(MEAN).reshape(1, 3, 1, 1) * scale  # no buffer, as in many repositories

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - self.mean) + self.mean


class Interpolated(nn.Module):
    """Works on the picture enlarged beforehand, and adds it where it learns the difference."""

    def __init__(self, *body: nn.Module, adds: bool) -> None:
        super().__init__()
        self.body, self.adds = nn.Sequential(*body), adds

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        return x + self.body(x) if self.adds else self.body(x)


def srcnn() -> nn.Module:
    return Interpolated(conv(3, 64, 9), nn.ReLU(), conv(64, 32, 5), nn.ReLU(), conv(32, 3, 5), adds=False)


def vdsr() -> nn.Module:
    inner = [layer for _ in range(18) for layer in (conv(32, 32, bias=False), nn.ReLU())]
    return Interpolated(conv(3, 32, bias=False), nn.ReLU(), *inner, conv(32, 3, bias=False), adds=True)


def espcn() -> nn.Module:
    return nn.Sequential(conv(3, 64, 5), nn.Tanh(), conv(64, 32), nn.Tanh(), up(32), nn.Sigmoid())


def fsrcnn() -> nn.Module:
    inner = [layer for _ in range(4) for layer in (conv(12, 12), nn.PReLU(12))]
    ends = nn.ConvTranspose2d(56, 3, 9, stride=2, padding=4, output_padding=1)
    return nn.Sequential(
        conv(3, 56, 5), nn.PReLU(56), conv(56, 12, 1), nn.PReLU(12), *inner, conv(12, 56, 1), nn.PReLU(56), ends
    )


def edsr() -> nn.Module:
    blocks = [Add(conv(32, 32), nn.ReLU(), conv(32, 32), gain=0.1) for _ in range(12)]
    return Shifted(conv(3, 32), Add(*blocks, conv(32, 32)), up(32))


class ChannelAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(width, width // 8, 1), nn.ReLU(), conv(width // 8, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def rcan() -> nn.Module:
    def block() -> nn.Module:
        return Add(conv(32, 32), nn.ReLU(), conv(32, 32), ChannelAttention(32))

    groups = [Add(*(block() for _ in range(4)), conv(32, 32)) for _ in range(3)]
    return Shifted(conv(3, 32), Add(*groups, conv(32, 32)), up(32))


class Dense(nn.Module):
    """The residual dense block of RRDB."""

    def __init__(self, width: int = 32, growth: int = 16) -> None:
        super().__init__()
        sizes = [(width + i * growth, growth if i < 4 else width) for i in range(5)]
        self.layers = nn.ModuleList(conv(i, o) for i, o in sizes)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for layer in self.layers[:-1]:
            parts.append(F.leaky_relu(layer(torch.cat(parts, 1)), 0.2))
        return x + 0.2 * self.layers[-1](torch.cat(parts, 1))


def rrdb() -> nn.Module:
    blocks = [Add(*(Dense() for _ in range(3)), gain=0.2) for _ in range(2)]
    return nn.Sequential(
        conv(3, 32),
        Add(*blocks, conv(32, 32)),
        nn.Upsample(scale_factor=2),
        conv(32, 32),
        nn.LeakyReLU(0.2),
        conv(32, 3),
    )


def srresnet() -> nn.Module:
    def block() -> nn.Module:
        return Add(conv(32, 32), nn.BatchNorm2d(32), nn.PReLU(), conv(32, 32), nn.BatchNorm2d(32))

    inner = Add(*(block() for _ in range(6)), conv(32, 32), nn.BatchNorm2d(32))
    return nn.Sequential(conv(3, 32, 9), nn.PReLU(), inner, up(32), nn.Tanh())


class Norm2d(nn.Module):
    """LayerNorm over channels, written out as NAFNet does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight.view(-1, 1, 1) * (x - mean) / (var + 1e-6).sqrt() + self.bias.view(-1, 1, 1)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * b


def nafnet() -> nn.Module:
    def blocks() -> list[nn.Module]:
        attended = Add(
            Norm2d(32), conv(32, 64, 1), conv(64, 64, groups=64), Gate(), ChannelAttention(32), conv(32, 32, 1)
        )
        return [attended, Add(Norm2d(32), conv(32, 64, 1), Gate(), conv(32, 32, 1))]

    return nn.Sequential(conv(3, 32), *(b for _ in range(4) for b in blocks()), up(32))


class Transposed(nn.Module):
    """Restormer's attention over channels, of normalized rows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, Norm2d(width)
        self.qkv, self.out = conv(width, 3 * width, 1), conv(width, width, 1)
        self.temperature = nn.Parameter(5 * torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = rows.unbind(1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return x + self.out((scores.softmax(-1) @ v).flatten(1, 2).unflatten(-1, x.shape[-2:]))


def restormer() -> nn.Module:
    inner = [layer for _ in range(4) for layer in (Transposed(32, 4), Add(conv(32, 64, 1), nn.GELU(), conv(64, 32, 1)))]
    return nn.Sequential(conv(3, 32), *inner, up(32))


class Window(nn.Module):
    """SwinIR's block: attention in shifted windows with a bias by relative position, then an MLP."""

    def __init__(self, width: int = 32, heads: int = 4, window: int = 8, shift: int = 0) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.table = nn.Parameter(0.5 * torch.randn((2 * window - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = grid[:, :, None] - grid[:, None] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        s, x = self.window, x.permute(0, 2, 3, 1)
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.reshape(b, h // s, s, w // s, s, c).transpose(2, 3).reshape(-1, s * s, c)
        y = self.attend(y).reshape(b, h // s, w // s, s, s, c).transpose(2, 3).reshape(b, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return (x + self.mlp(self.norm2(x))).permute(0, 3, 1, 2)


def swinir() -> nn.Module:
    groups = [Add(Window(), Window(shift=4), Window(), Window(shift=4), conv(32, 32)) for _ in range(2)]
    return Shifted(conv(3, 32), Add(*groups), up(32), scale=1.0)


class Spatial(nn.Module):
    """The spatial attention of RFANet and IMDN: pooled, convolved, enlarged again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.inner, self.expand = conv(width, 8, 1), conv(8, 8), conv(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        small = self.reduce(x)
        pooled = self.inner(F.max_pool2d(small, 7, stride=3))
        gate = F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=False) + small
        return x * torch.sigmoid(self.expand(gate))


def imdn() -> nn.Module:
    blocks = [Add(conv(32, 32), nn.LeakyReLU(0.05), conv(32, 32), Spatial(32)) for _ in range(6)]
    return nn.Sequential(conv(3, 32), Add(*blocks, conv(32, 32)), up(32))


def weight_normed() -> nn.Module:
    """WDSR: weight normalization by hooks, whose weight can't be copied."""
    normed: Callable[[nn.Module], nn.Module] = nn.utils.weight_norm  # deprecated, and in every WDSR repository

    def block() -> nn.Module:
        return Add(normed(conv(24, 96)), nn.ReLU(), normed(conv(96, 24)), gain=0.5)

    return Shifted(
        normed(conv(3, 24)), *(block() for _ in range(8)), nn.Sequential(normed(conv(24, 12)), nn.PixelShuffle(2))
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    make.__name__: make
    for make in (
        srcnn, vdsr, espcn, fsrcnn, edsr, rcan, rrdb, srresnet, nafnet, restormer, swinir, imdn, weight_normed,
    )
}  # fmt: skip


def trained(name: str, seed: int = 0) -> nn.Module:
    """A net whose layers keep the size of what they are given, and whose norms have statistics."""
    torch.manual_seed(seed)
    net = NETS[name]()
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            tensor = getattr(layer, "weight_v", layer.weight)
            nn.init.kaiming_normal_(tensor, a=0.2)
            if hasattr(layer, "weight_g"):
                layer.weight_g.data.fill_(1.4)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.3)
            layer.running_var.uniform_(0.3, 3)
    return net.eval()
