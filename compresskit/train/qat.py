"""Quantization-aware training: a model goes on training with its weights rounded in every forward pass.

"Learned Step Size Quantization" (Esser et al., 2020), from a rounded model on, with the unquantized model as a teacher.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import nn

from compresskit.ops.calibration.moments import collectable
from compresskit.ops.packed.modules import packed_twin, set_module
from compresskit.ops.quantize.fake import FakeWeight, faked
from compresskit.ops.quantize.fake_int8 import int8
from compresskit.ops.quantize.opened import opened
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.weights import Layers, fact, named, plan_layers
from compresskit.train.loop import Fitted
from compresskit.train.training_plan import TrainingPlan


def quantize_trained(
    module: nn.Module,
    selection: Selection,
    training_plan: TrainingPlan,
) -> tuple[dict[str, Any], dict[str, str], Fitted]:
    """Train a module with rounded weights, and replace its layers by packed ones, in place.

    Args:
        module: Any module.
        selection: Which layers, and their grids.
        training_plan: On what, how, and how long.

    Returns:
        The facts, as those of :func:`~compresskit.ops.quantize.weights.quantize_module`; the layers left alone with the
        reason; and the result of training.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: Nothing can be quantized, or training diverged.
    """
    with opened(module):
        return _quantize_trained(module, selection, training_plan)


def _quantize_trained(
    module: nn.Module, selection: Selection, training_plan: TrainingPlan
) -> tuple[dict[str, Any], dict[str, str], Fitted]:
    plan, teacher = _begun(module, selection)
    weights = {name: layer.get_parameter("weight") for name, layer in plan.layers.items()}
    owners = {name: plan.ties.get(name, name) for name in plan.layers}
    fakes: dict[str, FakeWeight] = {}
    for name in plan.layers:
        if owners[name] == name:
            fakes[name] = FakeWeight(named(name, partial(quantize_rtn, weights[name], plan.grids[name])))
    originals = {name: weights[name].detach().clone() for name in fakes}
    with faked(plan.layers, {name: fakes[owner] for name, owner in owners.items()}):
        fitted = training_plan.fit(module, partial(training_plan.task.loss, teacher))
    packed = {name: fake.packed(plan.layers[name].get_parameter("weight")) for name, fake in fakes.items()}
    facts: dict[str, Any] = {}
    for name, layer in plan.layers.items():
        owner = owners[name]
        facts[name] = facts[owner] if name != owner else fact(type(layer).__name__, packed[name], originals[name])
        set_module(module, name, packed_twin(layer, packed[owner]))
    return {"layers": facts, "ties": plan.ties}, plan.skipped, fitted


def train_int8(
    module: nn.Module,
    selection: Selection,
    training_plan: TrainingPlan,
    *,
    levels: int = 127,
) -> Fitted:
    """Train a module with weights and the inputs of its layers in 8 bits, in place; it stays a float module.

    Its weights end on the grids that a static int8 file gives them.

    Args:
        module: Any module.
        selection: Which layers; only those that multiply (Linear and convolutions) take part.
        training_plan: On what, how, and how long.
        levels: The largest code of a weight.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: Nothing can be quantized, or training diverged.
    """
    plan, teacher = _begun(module, selection)
    layers = [layer for name, layer in plan.layers.items() if collectable(layer) and name not in plan.ties]
    with int8(layers, levels):
        return training_plan.fit(module, partial(training_plan.task.loss, teacher))


def _begun(module: nn.Module, selection: Selection) -> tuple[Layers, nn.Module]:
    """The layers that take part, and the module as it is now."""
    module.eval()
    return plan_layers(module, selection), copy.deepcopy(module).requires_grad_(False)
