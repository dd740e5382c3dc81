"""How long and how a module is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from compresskit.train.muon import Muon

Precision = Literal["auto", "float32", "bfloat16"]
Kind = Literal["sgd", "adamw", "muon"]


@dataclass(frozen=True)
class Optimizing:
    """How parameters move.

    Attributes:
        lr: Peak learning rate.
        kind: ``sgd`` with Nesterov momentum 0.9, ``adamw`` ("Decoupled Weight Decay Regularization", Loshchilov &
            Hutter, 2019), or ``muon``: see :class:`~compresskit.train.muon.Muon`.
        schedule: ``onecycle`` rises for the first 30 % of the steps (Smith & Topin, "Super-Convergence", 2019);
            ``cosine`` falls to zero from the start on ("SGDR", Loshchilov & Hutter, 2017), after ``warmup``.
        warmup: Share of the steps in which the rate rises from zero, for ``cosine``; 0 to 1.
        weight_decay: L2 penalty of parameters of two axes and more; for ``onecycle`` of all, but for ``muon``.
    """

    lr: float = 0.1
    kind: Kind = "sgd"
    schedule: Literal["onecycle", "cosine"] = "onecycle"
    warmup: float = 0.0
    weight_decay: float = 5e-4

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """An optimizer of the parameters that require gradients."""
        if self.kind == "muon":
            return Muon(module, self.lr, self.weight_decay)
        found = [p for p in module.parameters() if p.requires_grad]
        if self.schedule == "onecycle":
            groups = [{"params": found, "weight_decay": self.weight_decay}]
        else:
            decayed, plain = [p for p in found if p.dim() > 1], [p for p in found if p.dim() <= 1]
            groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        # One pass over the memory in place of ten, where the device has it.
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in found)
        if self.kind == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, fused=fused)
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True, fused=fused)

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate over ``steps`` steps of an optimizer."""
        if self.schedule == "onecycle":
            peaks = [group["lr"] for group in optimizer.param_groups]
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps)
        rising = max(1, int(self.warmup * steps))

        def factor(step: int) -> float:
            if step < rising and self.warmup:
                return (step + 1) / rising
            return 0.5 * (1 + math.cos(math.pi * step / steps))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class Training:
    """How long and how a module is trained; see :func:`~compresskit.train.loop.fit`.

    Attributes:
        epochs: Passes over the data, 1 or more.
        batch: Samples of a forward pass; with several processes, of all together.
        optimizing: How parameters move.
        accumulate: Batches whose mean gradient makes a step.
        clip: Largest norm of a step's gradient, over all parameters; 0 leaves it.
        precision: ``bfloat16`` runs the forward pass under autocast; ``auto`` does on GPUs, and not on CPUs.
        ema: Decay of a moving average of the weights and statistics, which is what remains at the end; 0 for none.
        patience: Epochs without a better validation after which training ends; the best epoch remains. 0: the last.
        dropout: Leave dropout on.
        recalibrate: Re-estimate the statistics of batch normalizations at the end.
        seed: Of the order of the samples, of augmentation, and of what the module itself draws.
    """

    epochs: int
    batch: int = 64
    optimizing: Optimizing = Optimizing()
    accumulate: int = 1
    clip: float = 0.0
    precision: Precision = "auto"
    ema: float = 0.0
    patience: int = 0
    dropout: bool = True
    recalibrate: bool = False
    seed: int = 0

    def autocasts(self, device: torch.device) -> bool:
        """Whether forward passes run in bfloat16 there."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device.type != "cpu")
