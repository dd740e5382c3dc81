"""A stack of wide two-layer perceptrons, shaped like the feed-forward parts of a language model."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """``depth`` residual blocks of ``width -> hidden -> width``: ``(…, width)`` to ``(…, width)``."""

    def __init__(self, depth: int, width: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def mlp(depth: int = 8, width: int = 2048, hidden: int = 5632) -> MLP:
    """184.6 M parameters as it stands: the time of one token is the time to read the weights."""
    return MLP(depth, width, hidden)
