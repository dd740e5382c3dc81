"""Training: SGD with momentum under a one-cycle learning rate (Smith & Topin, "Super-Convergence", 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compresskit.stage import Progress, silent

Loss = Callable[[nn.Module, Sequence[Tensor]], Tensor]


def fit(
    module: nn.Module,
    tensors: Sequence[Tensor],
    loss: Loss,
    *,
    epochs: int,
    batch: int = 64,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Train a module in place on samples that fit into memory, and leave it in eval mode.

    Args:
        module: Any module.
        tensors: Equally long along the first axis; each step takes the same rows of all.
        loss: From the module and one batch of ``tensors`` to a scalar.
        epochs: Passes over the data, 1 or more.
        batch: Rows of a step; the last incomplete batch of an epoch is left out.
        lr: Peak learning rate.
        weight_decay: L2 penalty.
        seed: Of the order of the samples.
        progress: Called after each epoch.
    """
    rows = len(tensors[0])
    batch = min(batch, rows)
    steps = rows // batch
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    order = torch.Generator().manual_seed(seed)
    module.train()
    for epoch in range(epochs):
        for rows_of_step in torch.split(torch.randperm(rows, generator=order)[: steps * batch], batch):
            optimizer.zero_grad()
            torch.autograd.backward(loss(module, [t[rows_of_step] for t in tensors]))
            optimizer.step()
            schedule.step()
        progress("training", epoch + 1, epochs)
    module.eval()
