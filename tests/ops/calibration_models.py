"""Small models with blocks, for the tests of calibration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two branches in front of residuals; the first norm feeds only ``q`` and ``k``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
        h = self.norm1(x)
        h = self.q(h) * torch.sigmoid(self.k(h))
        if mask is not None:
            h = h * mask.unsqueeze(-1)
        x = x + self.out(h)
        return (x + self.down(torch.relu(self.up(self.norm2(x)))),)


class Blocks(nn.Module):
    """Ids in, logits out; the head shares the embedding's weight; ``unused`` is never called."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.Linear(width, width)
        with torch.no_grad():
            for layer in self.layers:
                layer.norm1.weight.mul_(torch.logspace(-1, 1, width)[torch.randperm(width)])
                for part in (layer.q, layer.k, layer.out, layer.up, layer.down):
                    if part.bias is not None:
                        part.bias.normal_(std=0.1)
        self.eval()

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, mask=attention_mask)[0]
        return self.head(self.norm(x))


def batches(count: int = 3, *, masked: bool = False) -> list[dict[str, Tensor]]:
    """Token ids ``(8, 12)``; with a mask half of the rows end in padding."""
    generator = torch.Generator().manual_seed(7)
    found: list[dict[str, Tensor]] = []
    for _ in range(count):
        batch = {"ids": torch.randint(0, 40, (8, 12), generator=generator)}
        if masked:
            batch["attention_mask"] = torch.ones(8, 12, dtype=torch.long)
            batch["attention_mask"][::2, 9:] = 0
        found.append(batch)
    return found


def forward(module: nn.Module, batch: dict[str, Tensor]) -> Any:
    """Call by name."""
    return module(**batch)
