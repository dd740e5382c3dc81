"""A recurrent text classifier: embedding, GRU, last state, linear."""

from __future__ import annotations

from torch import Tensor, nn


class GRUClassifier(nn.Module):
    """Token ids, int64 ``(n, length)``, to logits ``(n, classes)``."""

    def __init__(self, vocabulary: int, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.gru(self.embedding(ids))
        return self.head(states[:, -1])


def gru_classifier(vocabulary: int = 1000, width: int = 64, hidden: int = 128, classes: int = 4) -> GRUClassifier:
    """A small one: 139 k parameters."""
    return GRUClassifier(vocabulary, width, hidden, classes)
