"""Quantization-aware training: a model goes on training with its weights rounded in every forward pass.

"Learned Step Size Quantization" (Esser et al., 2020), from a rounded model on, with the unquantized model as a teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.ops.quantize.fake import FakeWeight, faked
from compresskit.ops.quantize.fake_int8 import int8
from compresskit.ops.quantize.modules import packed_twin, set_module
from compresskit.ops.quantize.moments import collectable
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.trace import tensors_in
from compresskit.ops.quantize.weights import Layers, fact, named, plan_layers
from compresskit.stage import Progress, silent
from compresskit.train.distill import soft_cross_entropy
from compresskit.train.loop import Augment, Loss, Optimizing, fit


@dataclass(frozen=True)
class Task:
    """What training aims at.

    Attributes:
        names: Input names of the tensors, in order.
        forward: Calls a module with inputs by name.
        labelled: The last tensor holds labels, int64 ``(n, …)``.
        classes: Outputs are logits along the last axis; else the distance to the teacher is squared.
        share: Of the loss that comes from the teacher where there are labels, 0 to 1.
        temperature: Of the teacher's logits.
    """

    names: Sequence[str]
    forward: Callable[[nn.Module, dict[str, Tensor]], Any]
    labelled: bool
    classes: bool
    share: float = 0.5
    temperature: float = 2.0

    def output(self, module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        """The module's first output."""
        inputs = dict(zip(self.names, part, strict=False))
        return next(tensors_in(self.forward(module, inputs)))

    def loss(self, teacher: nn.Module, module: nn.Module, part: Sequence[Tensor]) -> Tensor:
        """Of one batch."""
        found = self.output(module, part)
        total = torch.zeros(())
        share = self.share if self.labelled else 1.0
        if share:
            with torch.no_grad():
                wanted = self.output(teacher, part)
            if self.classes:
                total = share * soft_cross_entropy(found, wanted, self.temperature)
            else:
                total = share * F.mse_loss(found, wanted) / wanted.square().mean().clamp_min(1e-12)
        if self.labelled and share < 1:
            total = total + (1 - share) * F.cross_entropy(found, part[-1])
        return total


@dataclass(frozen=True)
class Training:
    """How long and how a module is trained; see :func:`~compresskit.train.loop.fit`."""

    epochs: int
    batch: int
    optimizing: Optimizing
    augment: Augment | None = None
    seed: int = 0
    progress: Progress = silent

    def fit(self, module: nn.Module, tensors: Sequence[Tensor], loss: Loss) -> float:
        """Train."""
        return fit(
            module, tensors, loss, epochs=self.epochs, batch=self.batch, optimizing=self.optimizing,
            augment=self.augment, seed=self.seed, progress=self.progress,
        )  # fmt: skip


def quantize_trained(
    module: nn.Module,
    selection: Selection,
    tensors: Sequence[Tensor],
    task: Task,
    training: Training,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Train a module with rounded weights, and replace its layers by packed ones, in place.

    Args:
        module: Any module.
        selection: Which layers, and their grids.
        tensors: The inputs in the order of ``task.names``, then labels where there are any; in memory.
        task: What training aims at.
        training: How long and how.

    Returns:
        The facts, as those of :func:`~compresskit.ops.quantize.weights.quantize_module` with ``loss``, the mean of the
        last epoch; and the layers left alone with the reason.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: Nothing can be quantized, the data don't fit, or training diverged.
    """
    plan, teacher = _begun(module, selection, tensors, task)
    weights = {name: layer.get_parameter("weight") for name, layer in plan.layers.items()}
    owners = {name: plan.ties.get(name, name) for name in plan.layers}
    fakes: dict[str, FakeWeight] = {}
    for name in plan.layers:
        if owners[name] == name:
            fakes[name] = FakeWeight(named(name, partial(quantize_rtn, weights[name], plan.grids[name])))
    originals = {name: weights[name].detach().clone() for name in fakes}
    with faked(plan.layers, {name: fakes[owner] for name, owner in owners.items()}):
        loss = training.fit(module, tensors, partial(task.loss, teacher))
    packed = {name: fake.packed(plan.layers[name].get_parameter("weight")) for name, fake in fakes.items()}
    facts: dict[str, Any] = {}
    for name, layer in plan.layers.items():
        owner = owners[name]
        facts[name] = facts[owner] if name != owner else fact(type(layer).__name__, packed[name], originals[name])
        set_module(module, name, packed_twin(layer, packed[owner]))
    return {"layers": facts, "ties": plan.ties, "loss": round(loss, 6)}, plan.skipped


def train_int8(
    module: nn.Module,
    selection: Selection,
    tensors: Sequence[Tensor],
    task: Task,
    training: Training,
    *,
    levels: int = 127,
) -> float:
    """Train a module with weights and the inputs of its layers in 8 bits, in place; it stays a float module.

    Its weights end on the grids that a static int8 file gives them.

    Args:
        module: Any module.
        selection: Which layers; only those that multiply (Linear and convolutions) take part.
        tensors: See :func:`quantize_trained`.
        task: What training aims at.
        training: How long and how.
        levels: The largest code of a weight.

    Returns:
        The mean loss of the last epoch.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: Nothing can be quantized, the data don't fit, or training diverged.
    """
    plan, teacher = _begun(module, selection, tensors, task)
    layers = [layer for name, layer in plan.layers.items() if collectable(layer) and name not in plan.ties]
    with int8(layers, levels):
        return training.fit(module, tensors, partial(task.loss, teacher))


def _begun(module: nn.Module, selection: Selection, tensors: Sequence[Tensor], task: Task) -> tuple[Layers, nn.Module]:
    """The layers that take part, and the module as it is now; refuses what would fail in the middle of an epoch."""
    module.eval()
    plan = plan_layers(module, selection)
    teacher = copy.deepcopy(module).requires_grad_(False)
    _check(task, teacher, tensors)
    return plan, teacher


@torch.no_grad()
def _check(task: Task, teacher: nn.Module, tensors: Sequence[Tensor]) -> None:
    """Refuse what would fail in the middle of an epoch.

    Raises:
        InputError: Too few samples, or labels that aren't classes of the model.
    """
    if len(tensors[0]) < 2:
        raise InputError("training needs at least two samples", "give more with --data")
    found = task.output(teacher, [t[:2] for t in tensors])
    if not found.isfinite().all():
        raise InputError("the model gives NaN or Inf on the training data", "look at the data's range and --normalize")
    if task.labelled:
        low, high = (int(v) for v in tensors[-1].aminmax())
        if found.dim() != 2 or low < 0 or high >= found.shape[-1]:
            raise InputError(
                f"labels from {low} to {high} don't fit the model's output {tuple(found.shape[1:])}",
                "labels are classes, from 0 on; without labels the model itself is the teacher",
            )
