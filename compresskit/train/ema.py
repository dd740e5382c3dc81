"""A moving average of a module's weights: it lies nearer to the minimum than the last step does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average of a module's state: parameters, and statistics of normalizations.

    In the first steps the decay is lower, so that the start weighs little.

    Args:
        module: As it is before the first step.
        decay: Below 1.

    Attributes:
        tensors: The average, by the names of the module's state.
        steps: Followed so far.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors = _copy(module)

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Take in the state after one more step."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        state: dict[str, Tensor] = module.state_dict()
        for name, new in state.items():
            if new.is_floating_point():
                self.tensors[name].lerp_(new, 1 - decay)
            else:
                self.tensors[name].copy_(new)

    @contextmanager
    def instead(self, module: nn.Module) -> Iterator[None]:
        """The module with the average for its state, for a while."""
        own = _copy(module)
        module.load_state_dict(self.tensors)
        try:
            yield
        finally:
            module.load_state_dict(own)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
