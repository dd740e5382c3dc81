"""Momentum whose directions all count alike: for the matrices between a network's first and last layer.

"Muon: An optimizer for hidden layers in neural networks" (Jordan et al., 2024). ``torch.optim.Muon`` takes matrices
only; here the kernels of convolutions are matrices too, ``(outputs, inputs * window)``, and what is no hidden matrix
moves by plain momentum in the same optimizer. Left out: bfloat16, and the scaling to AdamW's step of "Muon is Scalable
for LLM Training" (Liu et al., 2025, arXiv:2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compresskit.errors import InputError

MOMENTUM = 0.9
REST = 0.5
"""Learning rate of what is no hidden matrix, as a share of the matrices'."""
_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of one iteration, from the reference: singular values come between 0.7 and 1.2 in five."""
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized for hidden matrices.

    Args:
        module: Whose parameters move, as far as they require gradients.
        lr: Of hidden matrices: the spectral norm of a step, about. The rest moves at half of it.
        weight_decay: Share of the learning rate by which parameters of two axes and more shrink in a step.

    Raises:
        InputError: The module has no hidden matrix to move.
    """

    def __init__(self, module: nn.Module, lr: float, weight_decay: float = 0.0) -> None:
        hidden = list(hidden_matrices(module))
        if not hidden:
            raise InputError(
                "muon has no weights to move: none between the first and the last layer takes gradients",
                "take `optimizer` sgd or adamw",
            )
        known = {id(p) for p in hidden}
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
        groups: list[dict[str, Any]] = [
            {"params": hidden, "orthogonal": True, "weight_decay": weight_decay},
            {"params": [p for p in rest if p.dim() > 1], "lr": REST * lr, "weight_decay": weight_decay},
            {"params": [p for p in rest if p.dim() <= 1], "lr": REST * lr},
        ]
        super().__init__(groups, {"lr": lr, "momentum": MOMENTUM, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the parameters that have gradients."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return value

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        step = gradient.add(momentum, alpha=group["momentum"])
        if group["orthogonal"]:
            matrix = step.flatten(1)
            tall = max(1.0, len(matrix) / matrix.shape[1]) ** 0.5
            step = orthogonalized(matrix).mul_(tall).reshape(step.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])


def hidden_matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of Linear layers and convolutions that require gradients, without those of the first and last such layer.

    What an embedding shares is left out, and grouped convolutions, whose kernels are many small matrices.
    """
    others = {id(layer.weight) for layer in module.modules() if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))}
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, _ConvNd, nn.MultiheadAttention))]
    for layer in layers[1:-1]:
        for parameter in layer.parameters() if getattr(layer, "groups", 1) == 1 else ():
            if parameter.dim() > 1 and parameter.requires_grad and id(parameter) not in others:
                others.add(id(parameter))
                yield parameter


def orthogonalized(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are about 1, by Newton and Schulz's iteration.

    Args:
        matrix: ``(rows, columns)``, float; not changed. Zeros stay zeros.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    found: Tensor = wide / wide.norm().clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found if wide is matrix else found.T
