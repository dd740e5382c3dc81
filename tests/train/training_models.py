"""What the tests of training share: a task that a small net learns in a second."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compresskit.train.material import in_memory
from compresskit.train.task import Task


def data(count: int = 256) -> list[Tensor]:
    """Samples ``(n, 8)`` and their classes, 0 or 1."""
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    return [x, (x[:, :4].sum(1) > x[:, 4:].sum(1)).long()]


def net(*, norm: bool = False, dropout: float = 0.0, hidden: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(32)] * norm + [nn.ReLU()] + [nn.Dropout(dropout)] * bool(dropout)
    middle += [nn.Linear(32, 32), nn.ReLU()] * hidden
    return nn.Sequential(nn.Linear(8, 32), *middle, nn.Linear(32, 2, bias=False))


def loss(module: nn.Module, part: list[Tensor]) -> Tensor:
    return cross_entropy(module(part[0]), part[1])


def task(labelled: bool = True) -> Task:
    return Task(["x"], lambda module, batch: module(batch["x"]), "classes" if labelled else None, classes=True)


def accuracy(module: nn.Module) -> float:
    x, y = data()
    return float((module(x).argmax(1) == y).float().mean())


def equal(a: nn.Module, b: nn.Module) -> bool:
    """True when the two modules' states are the same bytes."""
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


HELD = in_memory([tensor[192:] for tensor in data()])
