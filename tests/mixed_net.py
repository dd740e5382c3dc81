"""A net with each kind of layer that can be packed."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mixed(nn.Module):
    """An embedding, a convolution and two Linear layers; ids ``(batch, tokens)`` below 50 go in."""

    def __init__(self, words: int, hidden: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.conv = nn.Embedding(50, words), nn.Conv1d(words, 24, 3, padding=1)
        self.up, self.head = nn.Linear(24, hidden), nn.Linear(hidden, 10, bias=False)
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.relu(self.conv(self.words(ids).transpose(1, 2))).transpose(1, 2)
        return self.head(torch.tanh(self.up(x)))
